"""Toolworld: a generated task that needs search, reading and arithmetic, and that nobody can know by heart.

Every question lives in a village of its own (`toolworld_world`), asks for a chain of two to four facts that ends in a
year, sometimes `plus k`, and is answered by calls of the ordinary `search` and `python` tools:

    in Bado Rimu , what is the birthyear of the mother of the boss of Kela plus 7 ?
    search Bado Rimu : boss of Kela -> search Bado Rimu : mother of Sovi -> search Bado Rimu : birthyear of Tuna
    -> python 1923 + 7

All villages share one small vocabulary of names and years; a village and all its questions belong to one split.
"""

from pathlib import Path
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

from engine.coins import seed_of
from engine.config import Fraction, NonNegative, NonNegativeFloat, Section
from engine.errors import ConfigError
from engine.traces import Trace
from tools.toolworld_traces import Question, drill, expert_trace, questions_of, words_of
from tools.toolworld_world import Crowd, World, make_worlds

SPLITS = ("sft", "train", "valid", "test")
SYSTEM_PROMPT = "find the answer with search and python ."
TOP_K = 1
"""Pages a search returns."""


class ToolworldConfig(Section, frozen=True):
    """Sizes and difficulty of a generated task. Equal configurations give equal bytes."""

    seed: int = 0
    """Of the whole task."""
    num_sft: NonNegative = 4000
    """Questions with an expert trace, for the cold start."""
    num_train: NonNegative = 800
    """Questions of `world:train`."""
    num_valid: NonNegative = 100
    """Questions of `world:valid`."""
    num_test: NonNegative = 400
    """Questions of `world:test`."""
    num_drills: NonNegative = 4000
    """Reading exercises on facts of the sft split."""
    questions_per_world: Annotated[int, Meta(ge=1, le=20)] = 20
    """Questions about one village."""
    hops: Annotated[tuple[NonNegativeFloat, ...], Meta(min_length=1, max_length=3)] = (0.4, 0.4, 0.2)
    """Difficulty: weights of questions that need two, three and four searches."""
    crowded: Fraction = 0.7
    """Difficulty: share of pages on which a fact stands between others; a search that finds another page is certain."""
    rivals: Annotated[int, Meta(ge=0, le=3)] = 1
    """Difficulty: sentences of a crowded page that are about somebody else."""
    alike: Fraction = 0.0
    """Difficulty: share of these that tell the same kind of fact as the page, so that the name must be read as well."""
    plus: Fraction = 0.33
    """Difficulty: share of questions that add a number, and so need python."""
    sloppy: Fraction = 0.55
    """Probability, at each hop, that the expert copies the first thing said about the subject, right or wrong."""

    def __post_init__(self) -> None:
        if not sum(self.hops):
            raise ConfigError("no length of chains has a weight - at $.world.hops")


class ToolworldFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What `generate` wrote into its folder."""

    corpus: str
    """JSONL of passages for the `search` tool, to be used with `top_k` = 1."""
    train: str
    """Parquet in ARPO's schema, as `valid` and `test`."""
    valid: str
    test: str
    sft: str
    """JSONL of `Trace`s."""
    drills: str
    """JSONL of `Trace`s."""
    words: str
    """JSON list of every word of the task but its tags, for `engine.tokenizer_tiny.make_word_tokenizer`."""
    num_passages: int
    num_words: int
    expert_success: float
    """Share of sft traces that end in the right answer."""


def generate(config: ToolworldConfig, out_dir: str | Path) -> ToolworldFiles:
    """Write the task into `out_dir`, which is made if need be; files of an earlier task are overwritten.

    About six seconds for the default sizes. Raises `ConfigError` for a task without a question,
    `DataError` where the search tool does not lead to an answer, and `OSError` where the folder cannot be written.
    """
    from tools.passages import Passage
    from tools.search import Corpus  # the door of bm25s
    from tools.toolworld_files import write_jsonl, write_parquet, write_words  # the door of pyarrow

    if not config.num_sft + config.num_train + config.num_valid + config.num_test + config.num_drills:
        raise ConfigError("toolworld: no question and no drill is asked for")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    worlds = _worlds_by_split(config)
    pages = [page for split in SPLITS for world in worlds[split] for page in world.pages]
    # Shuffled, so that a page's place in the corpus says nothing about its world.
    Random(seed_of(config.seed, "corpus")).shuffle(pages)
    passages = [Passage(id=f"p{i}", title=page.title, text=page.text) for i, page in enumerate(pages)]
    corpus = Corpus(passages)
    questions = {split: _questions(config, split, worlds[split]) for split in SPLITS}

    def trace_of(question: Question, *, sloppy: float, index: int = 0) -> Trace:
        return expert_trace(
            question,
            lambda query: corpus.answer(query, top_k=TOP_K, snippet_chars=10_000),
            system_prompt=SYSTEM_PROMPT,
            sloppy=sloppy,
            rng=Random(seed_of(config.seed, "trace", index)),
        )

    for split in ("train", "valid", "test"):
        for question in questions[split]:
            trace_of(question, sloppy=0.0)  # raises where the tools do not lead to the answer
    traces = [trace_of(q, sloppy=config.sloppy, index=index) for index, q in enumerate(questions["sft"])]
    drills = _drills(config, worlds["sft"])
    paths = {name: str(out_dir / f"{name}.parquet") for name in ("train", "valid", "test")}
    for split, path in paths.items():
        write_parquet(path, questions[split], split=split, system_prompt=SYSTEM_PROMPT)
    names = {"corpus": "corpus.jsonl", "sft": "sft.jsonl", "drills": "drills.jsonl", "words": "words.json"}
    paths |= {name: str(out_dir / file) for name, file in names.items()}
    write_jsonl(paths["corpus"], passages)
    write_jsonl(paths["sft"], traces)
    write_jsonl(paths["drills"], drills)
    texts = [p.text for p in passages] + [q.text for split in SPLITS for q in questions[split]]
    words = write_words(paths["words"], [SYSTEM_PROMPT, *texts, *(words_of(t) for t in (*traces, *drills))])
    num_right = sum(trace.is_correct for trace in traces)
    return ToolworldFiles(
        **paths,
        num_passages=len(passages),
        num_words=len(words),
        expert_success=num_right / len(traces) if traces else 0.0,
    )


def _worlds_by_split(config: ToolworldConfig) -> dict[str, list[World]]:
    sizes = {"sft": config.num_sft, "train": config.num_train, "valid": config.num_valid, "test": config.num_test}
    counts = {split: -(-size // config.questions_per_world) for split, size in sizes.items()}
    if config.num_drills and not counts["sft"]:
        counts["sft"] = 1
    count = sum(counts.values())
    worlds = make_worlds(count, seed=config.seed, crowd=Crowd(config.crowded, config.rivals, config.alike))
    return {split: [next(worlds) for _ in range(counts[split])] for split in SPLITS}


def _questions(config: ToolworldConfig, split: str, worlds: list[World]) -> list[Question]:
    size = {"sft": config.num_sft, "train": config.num_train, "valid": config.num_valid, "test": config.num_test}[split]
    questions: list[Question] = []
    for index, world in enumerate(worlds):
        rng = Random(seed_of(config.seed, "questions", split, index))
        count = min(config.questions_per_world, size - len(questions))
        questions += questions_of(world, count=count, hops=config.hops, plus=config.plus, rng=rng)
    return questions


def _drills(config: ToolworldConfig, worlds: list[World]) -> list[Trace]:
    rngs = (Random(seed_of(config.seed, "drill", index)) for index in range(config.num_drills))
    return [drill(rng.choice(worlds), system_prompt=SYSTEM_PROMPT, rng=rng) for rng in rngs]

"""The generated task: the same bytes from the same seed, answers that the tools can reach, splits without overlap."""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec
import pyarrow.parquet as pq
import pytest

from engine import config as configuration
from engine.clock import run_virtual
from engine.errors import ConfigError, DataError
from engine.interfaces import ToolHost
from engine.renderer_tags import TagRenderer
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.traces import Trace
from engine.types import ToolCall, ToolResult
from tools.config import RewardConfig, SearchConfig, ToolsConfig, build_executor
from tools.python import PythonConfig
from tools.rewards import exact_reward, official_reward
from tools.toolworld import TOP_K, ToolworldConfig, ToolworldFiles, generate
from tools.toolworld_habits import Habits
from tools.toolworld_traces import Question, expert_trace, words_of
from tools.toolworld_world import NUM_ORGANISATION_NAMES, NUM_PERSON_NAMES, Crowd, make_worlds

CONFIG = ToolworldConfig(
    num_sft=60,
    num_train=40,
    num_valid=10,
    num_test=20,
    num_drills=40,
    questions_per_world=4,
    crowded=0.8,
    alike=0.5,
    sloppy=0.3,
)
NUM_WORLDS = 15 + 10 + 3 + 5
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ToolworldFiles:
    return generate(CONFIG, tmp_path_factory.mktemp("toolworld"))


@pytest.fixture(scope="module")
def tools(files: ToolworldFiles) -> ToolHost:
    search = SearchConfig(corpus=files.corpus, top_k=TOP_K)
    return build_executor(ToolsConfig(search=search, python=PythonConfig(), reward=RewardConfig(kind="exact")))


def rows(path: str) -> list[dict]:
    return pq.read_table(path).to_pylist()


def traces(path: str) -> list[Trace]:
    return [msgspec.json.decode(line, type=Trace) for line in Path(path).read_bytes().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path: Path) -> None:
    small = ToolworldConfig(num_sft=6, num_train=5, num_valid=4, num_test=3, num_drills=2)
    one, again, other = tmp_path / "one", tmp_path / "again", tmp_path / "other"
    generate(small, one)
    generate(small, again)
    generate(msgspec.structs.replace(small, seed=1), other)
    assert contents(one) == contents(again)
    assert set(contents(one)) == {f"{n}.parquet" for n in ("train", "valid", "test")} | {
        "corpus.jsonl",
        "sft.jsonl",
        "drills.jsonl",
        "words.json",
    }
    assert all(contents(one)[name] != contents(other)[name] for name in contents(one))


def test_a_task_without_a_question_is_refused(tmp_path: Path) -> None:
    nothing = ToolworldConfig(num_sft=0, num_train=0, num_valid=0, num_test=0, num_drills=0)
    with pytest.raises(ConfigError, match="no question"):
        generate(nothing, tmp_path)
    with pytest.raises(ConfigError, match=r"no length of chains has a weight - at \$\.world\.hops"):
        ToolworldConfig(hops=(0.0, 0.0))


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"hops": []}, "hops"),
        ({"hops": [1, 1, 1, 1]}, "hops"),
        ({"hops": [1, -1]}, "hops[1]"),
        ({"rivals": 4}, "rivals"),
        ({"alike": 1.5}, "alike"),
        ({"questions_per_world": 21}, "questions_per_world"),
    ],
)
def test_a_difficulty_that_no_world_has_is_refused_by_its_key(raw: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration.decode(raw, ToolworldConfig, source="world")
    assert f"at `$.{key}`" in str(caught.value)


def test_an_expert_who_is_not_told_the_fact_does_not_make_one_up() -> None:
    question = Question(text="", place="Bado Rimu", start="Kela", relations=("boss",), plus=0, answer="1900")
    with pytest.raises(DataError, match="'boss' of 'Kela' does not find it"):
        expert_trace(question, lambda query: "Page 1: no .", system_prompt="", sloppy=1.0, rng=Random(0))


def test_rows_have_the_schema_of_arpo(files: ToolworldFiles) -> None:
    schema = pq.read_schema(files.train)
    assert schema.names == ["data_source", "prompt", "ability", "reward_model", "extra_info", "metadata"]
    assert str(schema.field("prompt").type) == "list<element: struct<role: string, content: string>>"
    for split in SPLITS:
        for index, row in enumerate(rows(getattr(files, split))):
            assert [message["role"] for message in row["prompt"]] == ["system", "user"]
            assert row["prompt"][1]["content"] == row["extra_info"]["question"]
            assert row["extra_info"] | {"question": ""} == {"index": index, "question": "", "split": split}
            assert row["reward_model"]["style"] == "rule"
    assert [len(rows(path)) for path in (files.train, files.valid, files.test)] == [40, 10, 20]


def parsed(question: str) -> tuple[str, str, tuple[str, ...], int]:
    """Place, first name, relations in the order of the look-ups, and what is added; from the words of a question."""
    place, _, rest = question.removeprefix("in ").removesuffix(" ?").partition(" , what is the ")
    chain, _, plus = rest.partition(" plus ")
    *relations, start = chain.replace(" of the ", " of ").split(" of ")
    return place, start, tuple(reversed(relations)), int(plus or 0)


async def follow(question: str, tools: ToolHost) -> str:
    """Answer a question of the task by its words alone: look up the innermost relation first, read, go on."""
    place, value, relations, plus = parsed(question)
    for relation in relations:
        page = await tools.call(ToolCall(name="search", arguments={"query": f"{place} : {relation} of {value}"}))
        value = page.text.split(f"the {relation} of {value} is ")[1].split(" .")[0]
    if plus:
        sum_ = await tools.call(ToolCall(name="python", arguments={"code": f"{value} + {plus}"}))
        return sum_.text
    return value


def test_every_answer_is_reached_through_the_tools(files: ToolworldFiles, tools: ToolHost) -> None:
    async def main() -> list[bool]:
        asked = [row for path in (files.train, files.valid, files.test) for row in rows(path)]
        return [await follow(r["extra_info"]["question"], tools) == r["reward_model"]["ground_truth"] for r in asked]

    right = asyncio.run(main())
    assert len(right) == 70
    assert all(right)


def test_every_fact_of_every_world_is_found_by_its_query(files: ToolworldFiles, tools: ToolHost) -> None:
    worlds = list(make_worlds(NUM_WORLDS, seed=CONFIG.seed, crowd=Crowd(CONFIG.crowded, CONFIG.rivals, CONFIG.alike)))
    pages = [(world.query(fact.subject, fact.relation), world.page(fact)) for world in worlds for fact in world.facts]

    async def main() -> list[str]:
        missing: list[str] = []
        for query, page in pages:
            found = await tools.call(ToolCall(name="search", arguments={"query": query}))
            missing += [] if found.text == f"Page 1: {page.text}" else [query]
        return missing

    assert files.num_passages == sum(len(world.pages) for world in worlds)
    assert len({query for query, _ in pages}) == len(pages) == NUM_WORLDS * 58
    assert run_virtual(main()) == []


def test_the_expert_says_what_the_tools_say(files: ToolworldFiles, tools: ToolHost) -> None:
    async def main() -> int:
        num_calls = 0
        for trace in traces(files.sft):
            for call, observed in itertools.pairwise(trace.segments):
                if observed.is_sampled:
                    continue
                name = "python" if "<python>" in call.text else "search"
                content = call.text.split(f"<{name}>")[1].split(f"</{name}>")[0].strip()
                arguments = {"code" if name == "python" else "query": content}
                result = await tools.call(ToolCall(name=name, arguments=arguments))
                assert observed.text == f" <result>\n{result.text}\n</result>"
                num_calls += 1
        return num_calls

    assert asyncio.run(main()) > 120


def test_traces_alternate_and_score_as_they_claim(files: ToolworldFiles) -> None:
    answers = {trace.prompt[1]["content"]: trace for trace in traces(files.sft)}
    assert len(answers) == CONFIG.num_sft
    for trace in answers.values():
        assert [segment.is_sampled for segment in trace.segments] == [True, False] * (len(trace.segments) // 2) + [True]
        text = "".join(segment.text for segment in trace.segments)
        said = text.split("\\boxed{")[1].split("}")[0].strip()
        assert exact_reward(text, said).score == 1.0
        assert official_reward(text, said).score >= 1.0
    truths = {row["extra_info"]["question"]: row["reward_model"]["ground_truth"] for row in rows(files.train)}
    assert not answers.keys() & truths.keys()
    share = sum(trace.is_correct for trace in answers.values()) / len(answers)
    assert share == files.expert_success
    assert 0.1 < share < 0.9


@pytest.mark.parametrize(("sloppy", "plus"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_careful_expert_is_always_right_and_a_careless_one_rarely(sloppy: float, plus: float, tmp_path: Path) -> None:
    sizes = {"num_train": 0, "num_valid": 0, "num_test": 0, "num_drills": 0}
    made = generate(ToolworldConfig(num_sft=40, sloppy=sloppy, plus=plus, **sizes), tmp_path)
    assert made.expert_success == 1.0 if sloppy == 0.0 else made.expert_success < 0.5
    assert all(("<python>" in words_of(trace)) == (plus == 1.0) for trace in traces(made.sft))


PAGE = "Page 1: the school of Nata is Mupe . the boss of Kela is Sovi . the mother of Kela is Tuna ."


@pytest.mark.parametrize(("sloppy", "relation", "said"), [(1.0, "mother", "Sovi"), (0.0, "mother", "Tuna")])
def test_a_sloppy_expert_copies_the_first_thing_said_about_the_subject(sloppy: float, relation: str, said: str) -> None:
    question = Question(text="", place="Bado Rimu", start="Kela", relations=(relation,), plus=0, answer="Tuna")
    trace = expert_trace(question, lambda query: PAGE, system_prompt="", sloppy=sloppy, rng=Random(0))
    assert trace.segments[-1].text == f" <think> {said} </think> <answer> \\boxed{{ {said} }} </answer>"
    assert trace.is_correct == (said == "Tuna")


@pytest.mark.parametrize(("sloppy", "right", "first"), [(0.0, 1.0, 0.0), (1.0, 0.0, 1.0)])
def test_habits_are_read_from_the_texts_of_traces(sloppy: float, right: float, first: float, tmp_path: Path) -> None:
    sizes = {"num_train": 0, "num_valid": 0, "num_test": 0, "num_drills": 0}
    made = generate(ToolworldConfig(num_sft=40, sloppy=sloppy, crowded=1.0, **sizes), tmp_path)
    habits = Habits.of("".join(segment.text for segment in trace.segments) for trace in traces(made.sft))
    # Nearly three searches a trace, and half of the pages say another thing first.
    assert 30 < habits.num_pages < 90
    assert (habits.right, habits.first) == (right, first)
    assert Habits.of(["<search> Bado Rimu : boss of Kela </search> no page"]).num_pages == 0


def test_splits_share_no_place_no_chain_and_no_question(files: ToolworldFiles) -> None:
    questions = {split: [r["extra_info"]["question"] for r in rows(getattr(files, split))] for split in SPLITS}
    questions["sft"] = [trace.prompt[1]["content"] for trace in traces(files.sft)]
    chains = {split: {parsed(question)[:3] for question in asked} for split, asked in questions.items()}
    places = {split: {frozenset(place.split()) for place, _, _ in chains[split]} for split in chains}
    places["drills"] = {frozenset(_asked(trace).split()[:2]) for trace in traces(files.drills)}
    assert places["drills"] <= places["sft"], "reading is drilled where the expert was, and nowhere else"
    for one, other in itertools.combinations(chains, 2):
        assert places[one] & places[other] == set()
        assert chains[one] & chains[other] == set()
    everything = [question for asked in questions.values() for question in asked]
    assert len(set(everything)) == len(everything) == 130
    assert sum(len(found) for found in chains.values()) == 130, "questions differ in more than what is added"
    assert {split: len(places[split]) for split in chains} == {"sft": 15, "train": 10, "valid": 3, "test": 5}


def _asked(trace: Trace) -> str:
    """The first query of a drill."""
    return trace.segments[0].text.removeprefix(" <search> ")


def test_all_places_share_one_small_vocabulary_of_names(files: ToolworldFiles) -> None:
    """Who is meant is known only with the place: starts come again in other splits, under other facts."""
    words = msgspec.json.decode(Path(files.words).read_bytes(), type=list[str])
    names = {word for word in words if word[0].isupper()} - {"Page", "No"}  # of what the search tool says
    num_place_words = 9  # 33 villages, and 9 words have 36 pairs
    assert len(names) == NUM_PERSON_NAMES + NUM_ORGANISATION_NAMES + num_place_words
    starts = [{parsed(row["extra_info"]["question"])[1] for row in rows(path)} for path in (files.train, files.test)]
    assert len(starts[0] & starts[1]) > 5


def test_every_word_is_in_the_vocabulary_and_round_trips(
    files: ToolworldFiles, tools: ToolHost, tmp_path: Path
) -> None:
    words = msgspec.json.decode(Path(files.words).read_bytes(), type=list[str])
    assert len(words) == files.num_words
    assert words == sorted(words)
    make_word_tokenizer(tmp_path, words=words)
    tokenizer = load_tokenizer(tmp_path)
    unknown = tokenizer.encode("neverheard")
    passages = [msgspec.json.decode(line)["text"] for line in Path(files.corpus).read_bytes().splitlines()]
    questions = [row["extra_info"]["question"] for split in SPLITS for row in rows(getattr(files, split))]
    for text in (*passages, *questions, *(words_of(t) for t in (*traces(files.sft), *traces(files.drills)))):
        assert unknown[0] not in tokenizer.encode(text)
    renderer = TagRenderer(tokenizer, specs=tools.specs, max_result_tokens=200)
    for trace in traces(files.sft):
        check_rendering(trace, renderer, tokenizer)


def check_rendering(trace: Trace, renderer: TagRenderer, tokenizer) -> None:
    """Observations are the renderer's, token by token, and calls are read back from the segments."""
    pieces: Sequence[list[int]] = [tokenizer.encode(segment.text) for segment in trace.segments]
    assert [token for piece in pieces for token in piece] == tokenizer.encode(
        "".join(segment.text for segment in trace.segments)
    )
    for segment, piece in zip(trace.segments, pieces, strict=True):
        if segment.is_sampled:
            assert len(renderer.parse(piece)) == ("<answer>" not in segment.text)
        else:
            text = segment.text.removeprefix(" <result>\n").removesuffix("\n</result>")
            result = ToolResult(name="search", text=text)
            assert renderer.render_results([result], segment=[]).tolist() == piece

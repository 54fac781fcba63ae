"""The generated task: the same bytes from the same seed, answers that the tools can reach, splits without overlap."""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec
import pyarrow.parquet as pq
import pytest

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
from tools.toolworld_traces import Question, expert_trace, words_of
from tools.toolworld_world import PAIRS, make_worlds

CONFIG = ToolworldConfig(num_sft=60, num_train=40, num_valid=10, num_test=20, num_drills=10, crowded=0.8, sloppy=0.5)


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


def test_an_expert_who_is_not_told_the_fact_does_not_make_one_up() -> None:
    question = Question(text="", start="Bado Rimu", relations=("boss",), plus=0, answer="1900")
    with pytest.raises(DataError, match="'boss' of 'Bado Rimu' does not find it"):
        expert_trace(question, lambda query: "Page 1: no .", system_prompt="", sloppy=1.0, rng=Random(0))


def test_rows_have_the_schema_of_arpo(files: ToolworldFiles) -> None:
    schema = pq.read_schema(files.train)
    assert schema.names == ["data_source", "prompt", "ability", "reward_model", "extra_info", "metadata"]
    assert str(schema.field("prompt").type) == "list<element: struct<role: string, content: string>>"
    for split, path in (("train", files.train), ("valid", files.valid), ("test", files.test)):
        for index, row in enumerate(rows(path)):
            assert [message["role"] for message in row["prompt"]] == ["system", "user"]
            assert row["prompt"][1]["content"] == row["extra_info"]["question"]
            assert row["extra_info"] | {"question": ""} == {"index": index, "question": "", "split": split}
            assert row["reward_model"]["style"] == "rule"
    assert [len(rows(path)) for path in (files.train, files.valid, files.test)] == [40, 10, 20]


async def follow(question: str, tools: ToolHost) -> str:
    """Answer a question of the task by its words alone: look up the innermost relation first, read, go on."""
    words = question.removeprefix("what is the ").removesuffix(" ?").partition(" plus ")
    *relations, value = words[0].replace(" of the ", " of ").split(" of ")
    for relation in reversed(relations):
        page = await tools.call(ToolCall(name="search", arguments={"query": f"{relation} of {value}"}))
        value = page.text.split(f"the {relation} of {value} is ")[1].split(" .")[0]
    if words[2]:
        sum_ = await tools.call(ToolCall(name="python", arguments={"code": f"{value} + {words[2]}"}))
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
    worlds = make_worlds(33, seed=CONFIG.seed, name_words=CONFIG.name_words, crowded=CONFIG.crowded)
    facts = [fact for world in worlds for fact in world.facts]

    async def main() -> list[str]:
        missing: list[str] = []
        for fact in facts:
            query = f"{fact.relation} of {fact.subject}"
            found = await tools.call(ToolCall(name="search", arguments={"query": query}))
            missing += [] if fact.text in found.text else [query]
        return missing

    assert len(facts) == 33 * 58
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
    share = sum(trace.is_correct for trace in answers.values()) / len(answers)
    assert share == files.expert_success
    assert 0.1 < share < 0.9


@pytest.mark.parametrize(("sloppy", "plus"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_careful_expert_is_always_right_and_a_careless_one_rarely(sloppy: float, plus: float, tmp_path: Path) -> None:
    sizes = {"num_train": 0, "num_valid": 0, "num_test": 0, "num_drills": 0}
    made = generate(ToolworldConfig(num_sft=40, sloppy=sloppy, plus=plus, **sizes), tmp_path)
    assert made.expert_success == 1.0 if sloppy == 0.0 else made.expert_success < 0.5
    assert all(("<python>" in words_of(trace)) == (plus == 1.0) for trace in traces(made.sft))


def test_splits_share_no_name_and_no_question(files: ToolworldFiles) -> None:
    questions = {
        "sft": [trace.prompt[1]["content"] for trace in traces(files.sft)],
        **{
            split: [r["extra_info"]["question"] for r in rows(getattr(files, split))]
            for split in ("train", "valid", "test")
        },
    }
    starts = {split: {name_in(question) for question in asked} for split, asked in questions.items()}
    for one, other in itertools.combinations(starts, 2):
        assert starts[one] & starts[other] == set()
    everything = [question for asked in questions.values() for question in asked]
    assert len(set(everything)) == len(everything) == 130


def name_in(question: str) -> str:
    return question.split(" of ")[-1].partition(" plus ")[0].removesuffix(" ?")


@pytest.mark.parametrize("name_words", [2, 3])
def test_no_two_entities_of_all_worlds_hold_the_same_words(name_words: int) -> None:
    worlds = list(make_worlds(40, seed=3, name_words=name_words, crowded=1.0))
    names = [frozenset(name.split()) for w in worlds for name in {f.subject for f in w.facts}]
    assert len(set(names)) == len(names) == 40 * 11
    for world in worlds:
        words = [word for name in {f.subject for f in world.facts} for word in name.split()]
        assert len(set(words)) == len(words) == 11 * name_words


def test_a_pair_of_relations_never_has_one_object() -> None:
    pairs = [relations for kinds in PAIRS.values() for relations, _ in kinds]
    for world in make_worlds(20, seed=0, name_words=2, crowded=1.0):
        for subject in {fact.subject for fact in world.facts}:
            for one, other in pairs:
                objects = [f.object for f in world.facts if f.subject == subject and f.relation in (one, other)]
                assert len(set(objects)) == len(objects)
                assert subject not in objects


def test_a_crowded_page_holds_the_fact_its_rival_and_a_stranger_in_any_order() -> None:
    world = next(iter(make_worlds(1, seed=0, name_words=2, crowded=1.0)))
    texts = {fact.text: fact for fact in world.facts}
    places: set[int] = set()
    assert len(world.pages) == 7 * 3 + 4 * 2
    for page in world.pages:
        facts = [texts[f"{sentence} ."] for sentence in page.text.removesuffix(" .").split(" . ")]
        own = [fact for fact in facts if page.title.startswith(fact.subject)]
        assert (len(facts), len(own)) == (3, 2)
        assert len({fact.relation for fact in own}) == 2
        places.add(next(i for i, fact in enumerate(facts) if fact not in own))
    assert places == {0, 1, 2}


def test_an_uncrowded_page_holds_one_fact() -> None:
    world = next(iter(make_worlds(1, seed=0, name_words=2, crowded=0.0)))
    assert sorted(page.text for page in world.pages) == sorted(fact.text for fact in world.facts)


def test_drills_ask_for_every_fact_they_show_and_train_only_the_objects(files: ToolworldFiles) -> None:
    for trace in traces(files.drills):
        shown = trace.prompt[1]["content"].removeprefix("Page 1: ")
        told = ""
        for asked, said in zip(trace.segments[::2], trace.segments[1::2], strict=True):
            assert (asked.is_sampled, said.is_sampled) == (False, True)
            query = asked.text.removeprefix(" <search> ").removesuffix(" </search>")
            sentence = f"the {query} is {said.text.removeprefix(' <think> ').removesuffix(' </think>')} ."
            assert sentence in shown
            told += f"{sentence} "
        assert len(told.split()) == len(shown.split())


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
    questions = [row["extra_info"]["question"] for row in rows(files.test)]
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

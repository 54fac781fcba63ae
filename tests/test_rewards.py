"""Rewards: the released code case by case with its quirks, and the default that has none of them."""

import asyncio
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import run_virtual
from engine.errors import ConfigError
from engine.types import Reward, ToolCall, ToolResult
from tools.answers import answer_score, is_same, last_box, number
from tools.config import RewardConfig, ToolsConfig, build_executor
from tools.endpoint import EndpointConfig
from tools.executor import Executor
from tools.rewards import answer_of, arpo_reward, exact_reward, official_reward, reward_tool

THINK = "<think> t </think> "
SEARCH = "<search> q </search> <result>\nr\n</result> "
PYTHON = "<python> 1 </python> <result>\n1\n</result> "


def answer(text: str, *, before: str = THINK) -> str:
    return f"{before}<answer> \\boxed{{{text}}} </answer>"


WELL_FORMED = {
    "plain": answer("5"),
    "end of sequence behind": answer("5") + "<|im_end|>",
    "two thoughts": answer("5", before=THINK + THINK),
    "search": answer("5", before=THINK + SEARCH),
    "search and python": answer("5", before=THINK + SEARCH + THINK + PYTHON + THINK),
    "several boxes": "<think> </think> <answer> \\boxed{4} \\boxed{5} </answer>",
}


@pytest.mark.parametrize("text", WELL_FORMED.values(), ids=WELL_FORMED)
@pytest.mark.parametrize("reward", [official_reward, lambda t, g: arpo_reward(t, g, calls_run=()), exact_reward])
def test_a_well_formed_right_answer_is_correct(reward, text: str) -> None:
    result = reward(text, "5")
    assert result.is_correct
    assert result.score >= 1.0


MALFORMED_FOR_BOTH = {
    "no think": "<answer> \\boxed{5} </answer>",
    "open think": "<think> t <answer> \\boxed{5} </answer>",
    "no answer": THINK,
    "two answers": answer("5") + " <answer> \\boxed{5} </answer>",
    "answer not closed": THINK + "<answer> \\boxed{5}",
    "answer closed first": THINK + "</answer> \\boxed{5} <answer>",
    "box outside": THINK + "\\boxed{5} <answer> 5 </answer>",
    "no box": THINK + "<answer> 5 </answer>",
    "box not closed": THINK + "<answer> \\boxed{{5} </answer>",
    "search not closed": answer("5", before=THINK + "<search> q "),
    "empty": "",
}


@pytest.mark.parametrize("text", MALFORMED_FOR_BOTH.values(), ids=MALFORMED_FOR_BOTH)
def test_broken_format_scores_minus_one(text: str) -> None:
    for result in (official_reward(text, "5"), arpo_reward(text, "5", calls_run=("search", "python"))):
        assert result.score == -1.0
        assert not result.is_correct
        assert result.reason
        assert result.components == {"format": 0.0}
    assert exact_reward(text, "5").score == -1.0
    assert answer_of(text) is None


OFFICIAL_FORMAT = {
    "search without result": (answer("5", before=THINK + "<search> q </search> "), -1.0),
    "python without result": (answer("5", before=THINK + "<python> 1 </python> "), -1.0),
    "result before its search ends": (answer("5", before=THINK + "<search> <result> </search> </result> "), -1.0),
    "result not closed": (answer("5", before=THINK + "<search> q </search> <result> r "), -1.0),
    "second search without result": (answer("5", before=THINK + SEARCH + "<search> q </search> "), -1.0),
    "second search with result": (answer("5", before=THINK + SEARCH + SEARCH), 1.0),
    "the result of a later call serves": (answer("5", before=THINK + "<python> 1 </python>" + SEARCH), 1.1),
    "one result for a search and a python": (
        answer("5", before=THINK + "<search> q </search> <python> 1 </python> <result> r </result>"),
        1.1,
    ),
    "answer before think": (answer("5", before="") + " <think> t </think>", 1.0),
    "think closed before it is opened": (answer("5", before="</think> <think>"), 1.0),
    "stray closing tags earn the bonus": (answer("5") + " </search> </python>", 1.1),
    "stray closing search alone": (answer("5") + " </search>", 1.0),
    "both tools": (answer("5", before=THINK + SEARCH + PYTHON), 1.1),
    "bonus does not lift a wrong answer": (answer("4", before=THINK + SEARCH + PYTHON), 0.0),
    "extra tools cost nothing": (answer("5", before=THINK + SEARCH * 9), 1.0),
    "tags in a result count": (answer("5", before=THINK + "<search> q </search> <result> <think> </result>"), -1.0),
    "box in the spelling with a space": (THINK + "<answer> \\boxed{} \\boxed 5 $ x } </answer>", 1.0),
    "the spelling with a space wins": (THINK + "<answer> \\boxed 4 $ \\boxed{5} </answer>", 0.0),
    "last box is not in braces": (THINK + "<answer> \\boxed{5} \\boxed5 {x} </answer>", -1.0),
    "closing brace comes first": (THINK + "<answer> } \\boxed{{5 </answer>", -1.0),
    "nested braces": (THINK + "<answer> \\boxed{{5}} </answer>", 1.0),
}


@pytest.mark.parametrize(("text", "score"), OFFICIAL_FORMAT.values(), ids=OFFICIAL_FORMAT)
def test_official_reward_reads_tags_as_the_released_code(text: str, score: float) -> None:
    assert official_reward(text, "5").score == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "truth", "score"),
    [
        ("The Red Car!", "a red car", 1.0),
        ("red car", "blue car", 0.5),
        ("car car", "car", 2 / 3),
        ("car", "boat", 0.0),
        ("-5", "5", 1.0),
        ("3.14", "314", 1.0),
        ("0.5", "1/2", 0.0),
        ("A", "A", 0.0),
        ("theatre", "atre", 0.0),
        ("yes", "Yes.", 1.0),
        ("yes it is", "yes", 0.0),
        ("no", "no way", 0.0),
        ("noanswer", "noanswer given", 0.0),
        ("", "5", 0.0),
        ("\\frac{1}{2}", "frac12", 1.0),
    ],
)
def test_official_reward_compares_words_as_the_released_code(said: str, truth: str, score: float) -> None:
    result = official_reward(answer(said), truth)
    assert result.score == pytest.approx(score)
    assert result.is_correct == (score == 1.0)


def test_the_best_ground_truth_counts() -> None:
    assert official_reward(answer("red car"), ["blue boat", "red car", "car"]).score == 1.0
    assert arpo_reward(answer("red car"), ["blue boat", "red car", "car"], calls_run=()).score == 1.0
    assert exact_reward(answer("red car"), ["blue boat", "Red Car"]).score == 1.0
    assert official_reward(answer("red car"), []).score == 0.0


ARPO_FORMAT = {
    "think closed before it is opened": (answer("5", before="</think> <think>"), -1.0),
    "answer before think": (answer("5", before="") + " <think> t </think>", -1.0),
    "answer while thinking": ("<think> t <answer> \\boxed{5} </answer> </think>", -1.0),
    "answer in the second thought": (answer("5", before=THINK + "<think> "), -1.0),
    "call while thinking": (answer("5", before="<think> a <search> q </search> <result> r </result> b </think> "), 1.0),
    "something behind the answer": (answer("5") + " <search> q </search>", -1.0),
    "stray closing tag": (answer("5", before=THINK + "</search> "), -1.0),
    "a result without a call": (answer("5", before=THINK + "<result> 5 </result> "), -1.0),
    "two results for a call": (answer("5", before=THINK + SEARCH + "<result> r </result> "), -1.0),
    "a result that never ends": (answer("5", before=THINK + "<search> q </search> <result> r "), -1.0),
    "results left out": (answer("5", before=THINK + "<search> q </search> <python> 1 </python> "), 1.0),
    "tags in a result": (
        answer("5", before=THINK + "<search> q </search> <result> <answer> </think> </result> "),
        1.0,
    ),
    "tags in a program": (answer("5", before=THINK + "<python> print('<answer>') </python> "), 1.0),
}


@pytest.mark.parametrize(("text", "score"), ARPO_FORMAT.values(), ids=ARPO_FORMAT)
def test_arpo_reward_checks_the_structure_of_the_policys_own_text(text: str, score: float) -> None:
    assert arpo_reward(text, "5", calls_run=()).score == score


def test_the_bonus_is_for_tools_that_ran_and_not_for_tags() -> None:
    tagged = answer("5", before=THINK + SEARCH + PYTHON)
    assert arpo_reward(tagged, "5", calls_run=()).score == 1.0
    assert arpo_reward(tagged, "5", calls_run=["search", "search"]).score == 1.0
    assert arpo_reward(tagged, "5", calls_run=["search", "python"]).score == pytest.approx(1.1)
    assert arpo_reward(tagged, "6", calls_run=["search", "python"]).score == 0.0


@pytest.mark.parametrize(
    ("said", "truth", "score"),
    [
        ("0.5", "1/2", 1.0),
        ("0.5", "\\frac{1}{2}", 1.0),
        ("\\dfrac12", "0.50", 1.0),
        ("1\\frac{1}{2}", "3/2", 1.0),
        ("-\\frac{1}{2}", "-0.5", 1.0),
        ("\\frac{-1}{2}", "-0.5", 1.0),
        ("-5", "5", 0.0),
        ("\u22125", "-5", 1.0),
        ("3.14", "314", 0.0),
        ("1,000", "1000.0", 1.0),
        ("1e3", "1000", 1.0),
        ("$5$.", "5", 1.0),
        ("x = 5", "5", 1.0),
        ("50\\%", "50", 1.0),
        ("90^\\circ", "90", 1.0),
        ("1/0", "1", 0.0),
        ("five", "5", 0.0),
        ("5 apples", "5", 2 / 3),
        ("12", "1 2", 0.0),
        ("A", "A", 1.0),
        ("C", "The answer is \\( \\boxed{C} \\).", 1.0),
        ("the A", "A", 2 / 3),
        ("The Red Car!", "a red car", 1.0),
        ("red car", "blue car", 0.5),
        ("U.S.", "US", 1.0),
        ("\\text{Paris}", "Paris", 1.0),
        ("yes it is", "yes", 0.0),
        ("Yes", "yes", 1.0),
        ("3\\sqrt{3}-6", "3\\sqrt{3} - 6", 1.0),
        ("3\\sqrt{3}-9", "3\\sqrt{3} - 6", 0.0),
        ("\\sqrt3", "\\sqrt{3}", 1.0),
        ("x^{2}+1", "x^2 + 1", 1.0),
        ("x^2-1", "x^2 + 1", 0.0),
        ("(0.5, 1)", "\\left(\\frac{1}{2},1\\right)", 1.0),
        ("(2, 1)", "(1, 2)", 0.0),
        ("2, 1", "1,2", 1.0),
        ("2, 1, 1", "1,2", 0.0),
        ("", "5", 0.0),
        ("", "word", 0.0),
    ],
)
def test_arpo_reward_compares_what_answers_mean(said: str, truth: str, score: float) -> None:
    result = arpo_reward(answer(said), truth, calls_run=())
    assert result.score == pytest.approx(score)
    assert result.is_correct == (score == 1.0)
    assert result.components["accuracy"] == result.score


@pytest.mark.parametrize(
    ("said", "truth", "score"),
    [
        (" 1984 ", "1984", 1.0),
        ("1984.0", "1984", 1.0),
        ("1985", "1984", 0.0),
        ("1984 AD", "1984", 0.0),
        ("Red  car", "red car", 1.0),
        ("red car", "car", 0.0),
        ("the car", "car", 0.0),
    ],
)
def test_exact_reward_is_all_or_nothing(said: str, truth: str, score: float) -> None:
    assert exact_reward(answer(said), truth).score == score


def test_the_last_box_is_read_with_its_braces_balanced() -> None:
    assert last_box("\\boxed{1} \\boxed{\\frac{1}{2}} }") == "\\frac{1}{2}"
    assert last_box("\\boxed{1") is None
    assert last_box("none") is None


def test_a_number_that_would_cost_too_much_is_a_word() -> None:
    assert number("1e9999") is None
    assert number("9" * 5000) is None
    assert answer_score("9" * 5000, "9" * 5000) == 1.0


@given(st.fractions(max_denominator=1000))
def test_a_number_equals_itself_in_every_spelling(value) -> None:
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    for spelling in (
        f"{sign}{top}/{bottom}",
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"\\frac{{{sign}{top}}}{{{bottom}}}",
    ):
        assert number(spelling) == value
        assert answer_score(spelling, str(value)) == 1.0
        assert is_same(spelling, str(value))
        assert answer_score(spelling, str(value + 1)) == 0.0


@given(st.text(), st.text())
def test_a_score_is_a_share_and_an_answer_agrees_with_itself(said: str, truth: str) -> None:
    assert 0.0 <= answer_score(said, truth) <= 1.0
    assert answer_score(truth, truth) == 1.0


PIECES = ["<think>", "</think>", "<search>", "</search>", "<result>", "</result>", "<answer>", "</answer>"]


@given(st.lists(st.sampled_from([*PIECES, "\\boxed{", "\\boxed ", "}", "5"])).map("".join))
def test_any_text_has_one_of_the_three_kinds_of_score(text: str) -> None:
    for result in (official_reward(text, "5"), arpo_reward(text, "5", calls_run=("search", "python"))):
        assert result.score == -1.0 or 0.0 <= result.score <= 1.1


def scored(kind: str, **arguments) -> ToolResult:
    async def main() -> ToolResult:
        async with Executor([reward_tool(kind)], max_result_chars=1) as executor:
            assert executor.specs == ()
            return await executor.call(ToolCall(name="reward", arguments=arguments))

    return run_virtual(main())


@pytest.mark.parametrize(("kind", "score"), [("official", 1.1), ("arpo", 1.0), ("exact", 1.0)])
def test_a_reward_is_an_invisible_tool_whose_text_is_a_reward(kind: str, score: float) -> None:
    text = answer("5", before=THINK + SEARCH + PYTHON)
    result = scored(kind, text=text, ground_truth="5", tools_run=["search"])
    assert result.status == "ok"
    assert msgspec.json.decode(result.text, type=Reward).score == pytest.approx(score)


def test_the_reward_tool_reads_alternatives_as_a_prompt_carries_them() -> None:
    result = scored("exact", text=answer("New York"), ground_truth='["NYC", "New York"]')
    assert msgspec.json.decode(result.text, type=Reward).is_correct


def test_the_reward_tool_refuses_what_it_cannot_score() -> None:
    assert scored("arpo", text="").status == "malformed"
    with pytest.raises(ConfigError, match="no reward 'f1'"):
        reward_tool("f1")


@pytest.mark.parametrize("kind", ["arpo", "exact"])
def test_the_results_of_a_runs_own_tools_are_observations(kind: Literal["arpo", "exact"]) -> None:
    text = "<think> a </think> <stock> bolts </stock> <result>\nfew </think>\n</result> <think> b </think> "
    text += "<answer> \\boxed{few} </answer>"

    async def scored(*tools: str) -> float:
        async with Executor([reward_tool(kind, tools=tools)]) as executor:
            call = ToolCall(name="reward", arguments={"text": text, "ground_truth": "few"})
            return msgspec.json.decode((await executor.call(call)).text, type=Reward).score

    assert asyncio.run(scored("stock")) == 1.0
    assert asyncio.run(scored()) == -1.0, "a tag that calls nothing leaves the result to the policy"


def test_the_rewards_of_a_configuration_know_its_tools() -> None:
    shelf = {"type": "object", "properties": {"shelf": {"type": "string"}}, "required": ["shelf"]}
    endpoint = EndpointConfig(name="stock", description="What is left.", url="http://127.0.0.1:1", parameters=shelf)
    config = ToolsConfig(http=(endpoint,), reward=RewardConfig(kind="exact"))
    text = "<think> a </think> <stock> b </stock> <result>\nfew\n</result> <answer> \\boxed{few} </answer>"

    async def scored() -> float:
        async with build_executor(config) as executor:
            call = ToolCall(name="reward", arguments={"text": text, "ground_truth": "few"})
            return msgspec.json.decode((await executor.call(call)).text, type=Reward).score

    assert asyncio.run(scored()) == 1.0

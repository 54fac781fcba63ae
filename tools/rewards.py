"""Rewards: what an answer is worth. A reward is a tool that the engine calls instead of the model.

    ToolCall(name="reward", arguments={"text": ..., "ground_truth": ..., "tools_run": ["search", "python"]})

comes back as a `ToolResult` whose text is the JSON of an `engine.types.Reward`: same executor, deadline and errors as
any tool. It is not visible, so no model is ever offered it.
"""

import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import Literal

from engine.answers import alternatives
from engine.errors import ConfigError
from engine.types import Reward
from tools.answers import answer_score, is_same, last_box
from tools.official_reward import MULTI_TOOL_BONUS, official_reward
from tools.schema import Tool, tool

__all__ = ["answer_of", "arpo_reward", "exact_reward", "official_reward", "reward_tool"]

CALLS = ("search", "python")
"""The paper's tools: both must have run for the bonus."""
_OBSERVATION = re.compile(r"\s*<result>")


def arpo_reward(
    text: str, ground_truth: str | Sequence[str], *, calls_run: Collection[str], calls: Sequence[str] = CALLS
) -> Reward:
    """The hierarchical reward of ARPO (2507.19849, equation 8), with answers compared as in `answers.answer_score`.

        Acc + 0.1   format good, Acc > 0, and both search and python ran
        Acc         format good
        -1          otherwise

    `text` is the response, with or without the results the policy read: a `<result>` directly behind a call is an
    observation up to its first `</result>`, and what it says is not held against the policy (where a tool may return
    that tag, leave results out). `calls_run` names the tools that really ran, with
    status `ok`; tags alone earn nothing. `calls` names the tags that are calls. Of several ground truths the best
    counts. `is_correct` is Acc = 1.

    Format: at least one `<think>` block, closed; then exactly one `<answer>` as the last block, which holds a box;
    calls closed; nothing inside calls or answers is read as a tag; a call may stand inside a think block.
    """
    answer, fault = _read(text, calls=tuple(calls))
    if answer is None:
        return Reward(score=-1.0, reason=fault, components={"format": 0.0})
    truths = [ground_truth] if isinstance(ground_truth, str) else ground_truth
    accuracy = max((answer_score(answer, truth) for truth in truths), default=0.0)
    bonus = MULTI_TOOL_BONUS if accuracy > 0 and set(CALLS) <= set(calls_run) else 0.0
    return Reward(
        score=accuracy + bonus,
        is_correct=accuracy == 1.0,
        reason="" if accuracy > 0 else "wrong answer",
        components={"format": 1.0, "accuracy": accuracy, "multi_tool": bonus},
    )


def exact_reward(text: str, ground_truth: str | Sequence[str], *, calls: Sequence[str] = CALLS) -> Reward:
    """1 for the whole answer (numbers by value, words without regard to case), 0 for another, -1 for none to read."""
    answer, fault = _read(text, calls=tuple(calls))
    if answer is None:
        return Reward(score=-1.0, reason=fault, components={"format": 0.0})
    truths = [ground_truth] if isinstance(ground_truth, str) else ground_truth
    is_correct = any(is_same(answer, truth) for truth in truths)
    return Reward(
        score=float(is_correct),
        is_correct=is_correct,
        reason="" if is_correct else "wrong answer",
        components={"format": 1.0, "accuracy": float(is_correct)},
    )


def answer_of(text: str) -> str | None:
    """The boxed answer of a well-formed response; None otherwise."""
    return _read(text, calls=CALLS)[0]


def reward_tool(
    kind: Literal["arpo", "official", "exact"], *, tools: Sequence[str] = (), timeout_s: float = 30.0
) -> Tool:
    """The invisible tool `reward(text, ground_truth, tools_run)`.

    `tools` are the names of a run's tools, whose tags are calls beside `search` and `python` (the released code knows
    only these two). `ground_truth` is that of a `Prompt`: several answers may be a JSON list (`engine.answers`).
    Raises `ConfigError` for another kind.
    """
    if kind not in ("arpo", "official", "exact"):
        raise ConfigError(f"no reward {kind!r}: arpo, official or exact")

    calls = tuple(dict.fromkeys((*CALLS, *tools)))

    @tool(timeout_s=timeout_s, is_pure=True, visible=False, inline=True)
    def reward(text: str, ground_truth: str, tools_run: tuple[str, ...] = ()) -> Reward:
        """Score a response."""
        truths = alternatives(ground_truth)
        if kind == "official":
            return official_reward(text, truths)
        if kind == "exact":
            return exact_reward(text, truths, calls=calls)
        return arpo_reward(text, truths, calls_run=tools_run, calls=calls)

    return reward


@cache
def _tags(calls: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"<(/?)({'|'.join(map(re.escape, ('think', *calls, 'result', 'answer')))})>")


def _read(text: str, *, calls: tuple[str, ...]) -> tuple[str | None, str]:
    """The boxed answer, or None and what is wrong with the tags."""
    tags = _tags(calls)
    num_thoughts, is_thinking, position = 0, False, 0
    while tag := tags.search(text, position):
        closes, name = bool(tag[1]), tag[2]
        position = tag.end()
        if name == "think":
            if closes != is_thinking:
                return None, "think tags do not pair"
            num_thoughts += closes
            is_thinking = not closes
        elif closes or name == "result":
            return None, f"a stray {tag[0]}"
        else:
            end = text.find(f"</{name}>", position)
            if end < 0:
                return None, f"an open {tag[0]}"
            content, position = text[position:end], end + len(f"</{name}>")
            if name == "answer":
                rest = tags.search(text, position)
                return _boxed_answer(content, num_thoughts=num_thoughts, is_thinking=is_thinking, is_last=rest is None)
            if opening := _OBSERVATION.match(text, position):
                end = text.find("</result>", opening.end())
                if end < 0:
                    return None, "an open <result>"
                position = end + len("</result>")
    return None, "think tags do not pair" if is_thinking else "no answer"


def _boxed_answer(content: str, *, num_thoughts: int, is_thinking: bool, is_last: bool) -> tuple[str | None, str]:
    if is_thinking or not num_thoughts:
        return None, "an answer before the end of thinking"
    if not is_last:
        return None, "the answer is not the last block"
    answer = last_box(content)
    return answer, "" if answer is not None else "no readable box in the answer"

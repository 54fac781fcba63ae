"""The reward of ARPO's released code, reproduced decision by decision, for comparison with published runs.

Known quirks, kept: punctuation goes before comparing, so -5 equals 5 and 3.14 equals 314; 0.5 and 1/2 differ; an
answer that is an article ("A") scores 0; a closing tag without a call earns the bonus; one `<result>` serves a search
and a python block; the answer may come before the thinking. `tools.rewards.arpo_reward` has none of them.
"""

import re
import string
from collections.abc import Sequence

from engine.types import Reward
from tools.answers import token_f1

MULTI_TOOL_BONUS = 0.1
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})


def official_reward(text: str, ground_truth: str | Sequence[str]) -> Reward:
    """Score a response (without its prompt) as the released code does.

    -1 where the format is broken or the box cannot be read; else the token F1 with the best ground truth, plus 0.1
    where it is positive and the text holds both `</search>` and `</python>`. So
    `<think> .. </think> <answer> \\boxed{red car} </answer>` against `blue car` scores 0.5. An end-of-sequence token
    behind `</answer>` changes nothing. `is_correct` is F1 = 1.
    """
    fault = _format_fault(text)
    answer = None if fault else _boxed(_between_answer_tags(text))
    if answer is None:
        return Reward(score=-1.0, reason=fault or "no readable box", components={"format": 0.0})
    truths = [ground_truth] if isinstance(ground_truth, str) else ground_truth
    f1 = max((reward_f1(answer, truth) for truth in truths), default=0.0)
    bonus = MULTI_TOOL_BONUS if f1 > 0 and "</search>" in text and "</python>" in text else 0.0
    return Reward(
        score=f1 + bonus,
        is_correct=f1 == 1.0,
        reason="" if f1 > 0 else "wrong answer",
        components={"format": 1.0, "f1": f1, "multi_tool": bonus},
    )


def _format_fault(text: str) -> str:
    """What is wrong with the tags; empty if nothing that the released code looks at."""
    if not text.count("<think>") == text.count("</think>") >= 1:
        return "think tags do not pair"
    if not text.count("<answer>") == text.count("</answer>") == 1:
        return "not exactly one answer"
    for name in ("search", "python"):
        if not _calls_have_results(text, name):
            return f"a {name} call without its result"
    start, end = text.find("<answer>"), text.find("</answer>")
    if start > end:
        return "answer tags in the wrong order"
    if "\\boxed{" not in text[start:end] or "}" not in text[start:end]:
        return "no box in the answer"
    return ""


def _calls_have_results(text: str, name: str) -> bool:
    """Each `<name>` is followed by `</name>`, `<result>`, `</result>`; scanning resumes at `</result>`."""
    position = 0
    while (opening := text.find(f"<{name}>", position)) >= 0:
        closing = text.find(f"</{name}>", opening)
        result = text.find("<result>", opening)
        result_end = text.find("</result>", result) if result >= 0 else -1
        if not opening < closing < result < result_end:
            return False
        position = result_end
    return True


def _between_answer_tags(text: str) -> str:
    match = _ANSWER.search(text)
    return match.group(1) if match else ""


def _boxed(text: str) -> str | None:
    """The content of the last box; the spelling `\\boxed x` wins over braces wherever it occurs, and ends at `$`."""
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    start = text.rfind("\\boxed")
    depth = 0
    for position in range(max(start, 0), len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if text[position] == "}" and depth == 0:
            box = text[start : position + 1]
            return box[len("\\boxed{") : -1] if box.startswith("\\boxed{") else None
    return None


def reward_f1(prediction: str, ground_truth: str) -> float:
    """Token F1 as the released reward has it: yes, no and noanswer are all or nothing."""
    one, other = reward_normalised(prediction), reward_normalised(ground_truth)
    if one != other and (one in _ALL_OR_NOTHING or other in _ALL_OR_NOTHING):
        return 0.0
    return token_f1(one.split(), other.split())


def reward_normalised(text: str) -> str:
    """Lower case, without punctuation and then without articles, single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())

"""Mathematical equivalence: what two spellings mean, by math-verify (the door of math_verify)."""

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

import math_verify

from tools.answers import is_same

TIMEOUT_S = 3
"""For each of reading an answer and comparing it: expressions can be made that no computer simplifies."""
_MAX_CHARS = 1000
"""A longer answer is a text, and not an expression."""
_DOLLARS = re.compile(r"^\$+|\$+$")
_READERS = (math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig())

# It logs each answer that it cannot read, and each one that takes too long: what comes of both is "not equal".
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def math_equal(answer: str, truths: Sequence[str]) -> bool:
    """Whether an answer means the same as one of the right ones.

    `\\frac{1}{2}` is 0.5, (1, 2) is not (2, 1), x+1 is 1+x, {1, 2} is {2, 1}. What is not the same number or word is
    compared by math-verify: 0.333333 is a third, as it rounds to six places, and a timeout counts as "not equal". In a
    thread other than the main one there are no timeouts.
    """
    return any(_equal(answer, truth) for truth in truths)


def _equal(answer: str, truth: str) -> bool:
    if not answer.strip() or len(answer) > _MAX_CHARS:
        return False
    if is_same(answer, truth):
        return True
    timeout_s = TIMEOUT_S if threading.current_thread() is threading.main_thread() else None
    gold, said = _read(truth, timeout_s), _read(answer, timeout_s)
    return bool(gold) and bool(said) and bool(math_verify.verify(gold, said, timeout_seconds=timeout_s))


def _read(text: str, timeout_s: int | None) -> list[Any]:
    """What math-verify makes of a text; empty where it makes nothing of it."""
    inner = _DOLLARS.sub("", text.strip())
    return list(math_verify.parse(f"${inner}$", extraction_config=list(_READERS), parsing_timeout=timeout_s))

"""Ground truths with alternatives, as the one string that a `Prompt` carries.

A single answer is itself. Several are a JSON array of strings, and so is the rare single answer that reads like one,
which makes reading unambiguous: the interval `[1, 2]` is one answer, `["NYC", "New York"]` are two.
"""

import json
from collections.abc import Sequence

import msgspec

_DECODER = msgspec.json.Decoder(list[str])


def alternatives(ground_truth: str) -> tuple[str, ...]:
    """The answers that a reward should accept; at least one.

    >>> alternatives('["NYC", "New York"]'), alternatives("[1, 2]"), alternatives("42")
    (('NYC', 'New York'), ('[1, 2]',), ('42',))
    """
    if ground_truth.startswith("["):
        try:
            return tuple(_DECODER.decode(ground_truth)) or (ground_truth,)
        except msgspec.DecodeError:
            return (ground_truth,)
    return (ground_truth,)


def join_alternatives(answers: Sequence[str]) -> str:
    """The inverse of `alternatives`. Raises `ValueError` where there is no answer.

    >>> join_alternatives(["NYC", "New York"]), join_alternatives(["42"])
    ('["NYC", "New York"]', '42')
    """
    if not answers:
        raise ValueError("a ground truth needs one answer at least")
    if len(answers) == 1 and alternatives(answers[0]) == (answers[0],):
        return answers[0]
    return json.dumps(list(answers), ensure_ascii=False)

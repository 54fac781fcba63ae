"""What both sides of `arpo bench end-to-end` are given, and how what they did is told: one description for both."""

from collections.abc import Sequence

import msgspec


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A training run, as the engine's configuration says it. Produced by `end_to_end_engine`, consumed by `trl_arm`."""

    model_path: str
    prompts: tuple[list[dict[str, str]], ...]
    """Messages of each question, in the order in which they are asked."""
    num_prompts: int
    """Of a step."""
    num_completions: int
    """Of a prompt."""
    max_tokens: int
    """Of a completion, which ends earlier where the policy ends it."""
    temperature: float
    lr: float
    grad_clip: float
    clip: float
    """Epsilon of the clipped ratio."""
    steps: int
    threads: int


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a run says of itself."""

    ends_s: tuple[float, ...]
    """When each step was over, its weights ready for the next samples: on any one clock."""
    tokens: float
    """Mean length of a completion."""


def reward_of(text: str) -> float:
    """The share of words that begin with one of the letters a to m: cheap, and hardly ever the same for all completions
    of a prompt, so that every group has a gradient. Control tokens, which one side shows, are no words.

    >>> reward_of("and so the Lion<|im_end|>"), reward_of("and so <|im_end|>")
    (0.5, 0.5)
    """
    words = [word for word in text.lower().split() if not word.startswith("<|")]
    return sum("a" <= word[0] <= "m" for word in words) / max(len(words), 1)


def rate(ends_s: Sequence[float], *, completions: int, skip_first: int, skip_last: int) -> float:
    """Completions trained a second between the ends of two steps.

    The first steps warm up; behind the last one nothing is generated beside the training, so that it is no step like
    the others.

    >>> rate([0.0, 10.0, 12.0, 14.0, 15.0], completions=128, skip_first=1, skip_last=1)
    64.0
    """
    kept = ends_s[skip_first : len(ends_s) - skip_last]
    return completions * (len(kept) - 1) / (kept[-1] - kept[0])

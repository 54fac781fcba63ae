"""Soft overlong punishment: a response loses reward before it reaches the length at which it would be cut.

It belongs to the credit, not to the reward: it depends on the length alone, which the judge of a text does not know,
and evaluation, the journal and the question whether a group holds a signal go on with what the task itself paid.
"""

from engine.errors import ConfigError
from learner.algorithms.advantage_config import Overlong


def overlong_penalty(num_tokens: int, config: Overlong) -> float:
    """What a response of `num_tokens` loses: 0 up to L - B, then linear up to `factor` at L, and no more beyond.

    DAPO (2503.14476, Eq 13), with B = buffer * L. With L = 1000, buffer 0.2 and factor 1: 800 tokens lose 0, 900
    lose 0.5, 1000 lose 1. Raises `ConfigError` where L is not known.
    """
    if config.limit is None:
        raise ConfigError("overlong.limit is not set")
    buffer = config.buffer * config.limit
    return config.factor * min(max((num_tokens - (config.limit - buffer)) / buffer, 0.0), 1.0)

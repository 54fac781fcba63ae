"""ControlConfig: what `arpo bench control` simulates; every key can be given on its command line, or in a TOML file."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.bench.simulation import SIZE
from actors.bench.workload import Law
from engine.config import NonNegative, NonNegativeFloat, Positive, Section, apply_override, decode
from engine.config_layers import is_file, overlaid, read_toml
from engine.errors import ConfigError

QUICK: dict[str, Any] = {
    "law": {"num_prompts": 64},
    "http_prompts": 16,
    "large": {"num_generators": 10, "num_paths": 1_000, "num_batches": 5},
}
"""A minute for all of it."""
NUM_BATCHES = 8
"""Of the usual arm."""


class Large(Section, frozen=True):
    """The large simulation."""

    num_generators: Positive = 1024
    slots: Positive = 8
    """Requests that each of them serves at once."""
    num_paths: Positive = 100_000
    """In all."""
    num_batches: Positive = 10
    max_staleness: NonNegative = 1
    step_s: NonNegativeFloat = 2.0
    """An optimiser step."""
    publish_s: NonNegativeFloat = 0.2


class ControlConfig(Section, frozen=True):
    """Sizes of the arms, and the law of all of them."""

    law: Law = Law(num_prompts=256)
    """Its sizes are those of the usual arm; the others have its distributions."""
    concurrent_paths: Positive = 10_000
    """At once, in the arm whose memory is measured."""
    http_prompts: Positive = 64
    large: Large = Large()

    def __post_init__(self) -> None:
        if self.law.num_prompts < NUM_BATCHES:
            raise ConfigError(
                f"{NUM_BATCHES} batches need a prompt each, got {self.law.num_prompts} - at $.law.num_prompts"
            )
        if self.large.num_paths < self.large.num_batches * SIZE:
            least = f"{self.large.num_batches} batches need {SIZE} paths each"
            raise ConfigError(f"{least}, got {self.large.num_paths} - at $.large.num_paths")


def load_control(overrides: Sequence[str], *, is_quick: bool) -> ControlConfig:
    """`law.latency_median_s=2`, or files, over what is quick. Raises `ConfigError` with the path of a wrong key."""
    raw = copy.deepcopy(QUICK) if is_quick else {}
    for override in overrides:
        if is_file(override):
            raw = overlaid(raw, read_toml(Path(override)))
        else:
            apply_override(raw, override)
    return decode(raw, ControlConfig, source="bench control")

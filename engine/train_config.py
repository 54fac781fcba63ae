"""What a person may say about the loop: how long, how much at once, how far ahead, how reproducible."""

from engine.config import NonNegative, Positive, PositiveFloat, Section
from engine.errors import ConfigError
from engine.granting import Ranked
from engine.rollout_config import RolloutConfig
from engine.types import UpdateMode


class TrainConfig(Section, frozen=True):
    """How long to train, on how much at once, and how far generation may run ahead."""

    steps: Positive | None = None
    """Optimiser steps; unset trains until the data ends."""
    batch_size: Positive = 8
    """P: prompts (groups) a step."""
    max_staleness: NonNegative = 1
    """Steps between the oldest trained token's weights and those it trains; 0 is on-policy."""
    update_mode: UpdateMode = "retract"
    """What a weight update does to running requests."""
    checkpoint_every: Positive = 10
    """Steps between checkpoints, from which an interrupted run goes on."""
    eval_every: Positive | None = None
    """Steps between evaluations; unset evaluates never."""
    step_timeout_s: PositiveFloat = 7200.0
    """Deadline of an optimiser step, of publishing, and of a generator's weight update."""
    deterministic: bool = False
    """Fixed cohorts, grants in logical time, batches by cohort, updates between cohorts: same seed, same run."""


def check_deterministic(config: TrainConfig, rollout: RolloutConfig) -> None:
    """Refuse what cannot be deterministic: shared budgets go to whoever comes first."""
    if not config.deterministic:
        return
    shared = ["calls_per_prompt", "calls_per_cohort", "calls_per_run"]
    if not isinstance(rollout.granting, Ranked):
        shared.append("leaves_per_cohort")
    for name in shared:
        if getattr(rollout.budget, name) is not None:
            raise ConfigError(f"train.deterministic allows no rollout.budget.{name}: its use depends on timing")

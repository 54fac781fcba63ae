"""Batches: whether the buffer can ever be filled, and for how many steps the data lasts.

A batch is P groups that hold a learning signal, and a signal takes two trajectories that can differ. The buffer's
`(max_staleness + 1) P` slots are never the limit: a group without a signal frees its slot at once, and the window holds
a slow group back for at most `max_staleness` steps. What can be the limit is M, the cohort's budget of trajectories,
and the data.
"""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, of_error, ok, refused, warning
from actors.rollout_pool import check_distributable
from engine.errors import ConfigError
from engine.rollout_config import RolloutConfig
from engine.train_config import TrainConfig, check_deterministic

LEAST = 2
"""Trajectories of a group that can hold a signal."""


def check_batches(case: Case) -> Iterator[Finding]:
    train, rollout = case.config.train, case.config.rollout
    yield from _promises(case)
    most = trainable_groups(rollout, batch_size=train.batch_size)
    if most == 0:
        key = "rollout.size" if rollout.size < LEAST else "rollout.budget.leaves_per_cohort"
        yield refused(key, "no group can have two trajectories, so none holds a learning signal: no batch is ever full")
        return
    slots = (train.max_staleness + 1) * train.batch_size
    if most < train.batch_size:
        text = f"{most} of the {train.batch_size} prompts of a cohort can hold a learning signal"
        cost = "batches are smaller" if train.deterministic else f"a step takes {train.batch_size / most:.1f} cohorts"
        yield warning("rollout.budget.leaves_per_cohort", f"{text}: {cost}")
    else:
        text = f"{slots} slots, batches of {train.batch_size} groups, staleness up to {train.max_staleness}"
        yield ok("train.batch_size", text)
    yield from _data(case, most)


def trainable_groups(rollout: RolloutConfig, *, batch_size: int) -> int:
    """Groups of a cohort of `batch_size` prompts that can hold a learning signal, at most."""
    if rollout.size < LEAST:
        return 0
    leaves = rollout.budget.leaves_per_cohort
    return batch_size if leaves is None else min(batch_size, leaves // LEAST)


def num_batches(train: TrainConfig, rollout: RolloutConfig, *, num_prompts: int) -> int:
    """Batches that so many prompts can come to, at most; the last one may be smaller.

    With P = 4 and 5 trajectories a cohort, 2 groups of each 4 prompts can be trained: 10 prompts make 2 + 2 + 2 groups,
    which are 2 batches; by cohort (deterministic runs) they are 3, of 2 groups each.
    """
    size = train.batch_size
    if train.deterministic:
        return -(-num_prompts // size)
    whole, rest = divmod(num_prompts, size)
    most = trainable_groups(rollout, batch_size=size)
    return -(-(whole * most + min(rest, most)) // size)


def _promises(case: Case) -> Iterator[Finding]:
    """What the run itself refuses when it starts."""
    config = case.config
    try:
        check_deterministic(config.train, config.rollout)
        if case.is_on_ray:
            check_distributable(
                config.rollout,
                is_deterministic=config.train.deterministic,
                num_actors=config.runtime.ray.num_rollout_actors,
            )
    except ConfigError as error:
        yield of_error(error, key="train.deterministic")


def _data(case: Case, most: int) -> Iterator[Finding]:
    train, rows = case.config.train, case.rows.number
    if rows is None:
        return
    number = rows * case.config.data.epochs
    steps = num_batches(train, case.config.rollout, num_prompts=number)
    if train.steps is None:
        yield ok("train.steps", f"until the data ends: {number:,} prompts are {steps:,} steps at most")
    elif steps < train.steps:
        text = f"the data ends at step {steps:,} of {train.steps:,}: {number:,} prompts, {most} groups of each"
        yield warning("data.epochs", f"{text} {train.batch_size} can be trained")
    else:
        yield ok("train.steps", f"{train.steps:,} steps of {train.batch_size} prompts, and there are {number:,}")

"""What the trajectories of a group are credited with in a run: its estimator, its limits, and what can be trained."""

import msgspec

from actors.config import Config
from engine.types import Sample, TrajectoryGroup
from learner.algorithms.advantage import estimate
from learner.packing.flatten import check


def credit(group: TrajectoryGroup, config: Config) -> Sample | None:
    """`learner.algorithms.advantage.estimate` with the run's choices; None for a group without a learning signal.

    A penalty for length that names no limit takes the one at which this run cuts a response. Raises `LearnerError`,
    naming the prompt, for a group that the learner would refuse: tokens without a finite log-probability, or a
    trajectory above `learner.max_trajectory_tokens`.
    """
    overlong = config.learner.overlong
    if overlong is not None and overlong.limit is None:
        overlong = msgspec.structs.replace(overlong, limit=config.rollout.sampling.max_response_tokens)
    sample = estimate(group, config.learner.advantage, overlong=overlong)
    if sample is not None:
        check(sample, max_tokens=config.learner.max_trajectory_tokens)
    return sample

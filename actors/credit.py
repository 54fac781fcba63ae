"""What the trajectories of a group are credited with in a run: its estimator, and its length limit, put together."""

import msgspec

from actors.config import Config
from engine.types import Sample, TrajectoryGroup
from learner.advantage import estimate


def credit(group: TrajectoryGroup, config: Config) -> Sample | None:
    """`learner.advantage.estimate` with the run's choices; None for a group without a learning signal.

    A penalty for length that names no limit takes the one at which this run cuts a response.
    """
    overlong = config.learner.overlong
    if overlong is not None and overlong.limit is None:
        overlong = msgspec.structs.replace(overlong, limit=config.rollout.sampling.max_response_tokens)
    return estimate(group, config.learner.advantage, overlong=overlong)

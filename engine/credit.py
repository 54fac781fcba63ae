"""A finished group is credited, or refused with a reason: what cannot be trained must not reach a batch."""

import logging
from collections.abc import Callable

from engine.errors import LearnerError
from engine.types import Sample, TrajectoryGroup

logger = logging.getLogger(__name__)

Credit = Callable[[TrajectoryGroup], Sample | None]
"""None for a group without a learning signal; raises `LearnerError` for one that cannot be trained."""


def credited(credit: Credit, group: TrajectoryGroup) -> tuple[Sample | None, str]:
    """The sample, or why there is none. A malformed group is said in the log as well: it should not be."""
    try:
        sample = credit(group)
    except LearnerError as error:
        logger.warning("a group is refused: %s", error)
        return None, str(error)
    return sample, "" if sample is not None else "no learning signal"

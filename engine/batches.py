"""Batches: groups as the learner gets them, with the credit of their tokens; the same groups give the same batch."""

import hashlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from engine import codec
from engine.errors import JournalError, LearnerError
from engine.types import Batch, Sample, TrajectoryGroup

logger = logging.getLogger(__name__)

Credit = Callable[[TrajectoryGroup], Sample | None]
"""None for a group without a learning signal; raises `LearnerError` for one that cannot be trained."""


def credited(credit: Credit, group: TrajectoryGroup) -> tuple[Sample | None, str]:
    """The sample, or why there is none.

    A malformed group is said in the log as well: it should not be, and in a batch it would take others with it.
    """
    try:
        sample = credit(group)
    except LearnerError as error:
        logger.warning("a group is refused: %s", error)
        return None, str(error)
    return sample, "" if sample is not None else "no learning signal"


class Batches:
    """Gives groups their credit, and puts batches together."""

    def __init__(
        self,
        credit: Credit,
        credit_batch: Callable[[Sequence[Sample]], Sequence[Sample]] = tuple,
    ) -> None:
        """`credit_batch` finishes the samples of a step, all at once and in their order. Both are pure functions."""
        self._credit = credit
        self._credit_batch = credit_batch
        self._samples: dict[str, Sample] = {}

    def refuses(self, group: TrajectoryGroup) -> str:
        """Why the group is not to be trained; empty for one that is, whose credit is kept until its batch is made."""
        sample, reason = credited(self._credit, group)
        if sample is not None:
            self._samples[group.prompt.prompt_id] = sample
        return reason

    def make(self, step: int, groups: Sequence[TrajectoryGroup]) -> Batch:
        samples: list[Sample] = []
        for group in groups:
            sample = self._samples.pop(group.prompt.prompt_id, None) or self._credit(group)
            assert sample is not None, "a group without signal is refused before it can be taken"
            samples.append(sample)
        return Batch(step=step, samples=tuple(self._credit_batch(samples)))

    def again(self, step: int, groups: Sequence[TrajectoryGroup], *, expected: str) -> Batch:
        """A batch that an earlier process made. Raises `JournalError` where it is not the same."""
        batch = self.make(step, groups)
        if expected and digest(batch) != expected:
            raise JournalError(f"the batch of step {step} does not come out of the journal as it was trained")
        return batch


def digest(batch: Batch) -> str:
    """Over every token, log-probability, version, reward and advantage; not over the seconds that rollouts took."""
    found = hashlib.blake2b(str(batch.step).encode(), digest_size=16)
    for sample in batch.samples:
        timeless = msgspec.structs.replace(sample.group, wall_s=0.0)
        found.update(codec.encode(msgspec.structs.replace(sample, group=timeless)))
    return found.hexdigest()


def names_of(batch: Batch) -> tuple[str, ...]:
    """The prompts of a batch, in its order."""
    return tuple(sample.group.prompt.prompt_id for sample in batch.samples)

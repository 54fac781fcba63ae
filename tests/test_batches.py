"""Batches: the same groups give the same digest, and whatever the learner would see of them gives another one."""

import msgspec
import numpy as np
import pytest

from engine.batches import Batches, digest, names_of
from engine.errors import JournalError
from engine.tokenizer import HfTokenizer
from engine.train_config import TrainConfig
from engine.types import Batch, Sample
from tests.control_world import World, small, words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def batch(tokenizer: HfTokenizer) -> Batch:
    return World(tokenizer, train=TrainConfig(steps=1, batch_size=2), rollout=small()).run().trainer.batches[0]


def changed(batch: Batch, **changes: object) -> Batch:
    first, *others = batch.samples
    return msgspec.structs.replace(batch, samples=(msgspec.structs.replace(first, **changes), *others))


def test_a_digest_tells_batches_apart_but_not_how_long_they_took(batch: Batch) -> None:
    group = batch.samples[0].group
    slower = changed(batch, group=msgspec.structs.replace(group, wall_s=99.0))
    assert digest(slower) == digest(batch)
    advantages = batch.samples[0].advantages
    nudged = (np.nextafter(advantages[0], np.float32(9)), *advantages[1:])
    others = [
        msgspec.structs.replace(batch, step=2),
        msgspec.structs.replace(batch, samples=batch.samples[::-1]),
        changed(batch, advantages=nudged),
        changed(batch, group=msgspec.structs.replace(group, trajectories=group.trajectories[::-1])),
    ]
    assert len({digest(one) for one in [batch, *others]}) == 5


def test_a_batch_that_is_not_the_same_is_refused(batch: Batch) -> None:
    def credit(group: object) -> Sample:
        return next(sample for sample in batch.samples if sample.group is group)

    groups = [sample.group for sample in batch.samples]
    assert names_of(Batches(credit).again(1, groups, expected=digest(batch))) == names_of(batch)
    with pytest.raises(JournalError, match="the batch of step 1 does not come out of the journal as it was trained"):
        Batches(credit).again(1, groups[::-1], expected=digest(batch))

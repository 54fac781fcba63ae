"""Snapshots: whoever begins at one knows what reading everything would have told, and reads no more than it must."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import codec, journal, snapshot
from engine.errors import DataError
from engine.events import AnyEvent, Checkpointed
from engine.journal import Journal
from engine.metrics import MetricsFold
from engine.phases import PhaseFold
from engine.run_state import RunState
from engine.snapshot import Snapshot, SnapshotFold
from engine.tokenizer import HfTokenizer
from engine.train_config import TrainConfig
from tests.control_world import World, small, words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return words(tmp_path_factory.mktemp("words"))


def folded(events: list[AnyEvent], base: Snapshot | None = None) -> RunState:
    state = RunState() if base is None else base.restore()
    for event in events:
        state.apply(event)
    return state


def taken(events: list[AnyEvent], base: Snapshot | None = None) -> Iterator[tuple[int, Snapshot]]:
    """A snapshot behind each checkpoint, and how many events are before it."""
    fold, metrics, phases = SnapshotFold(base), MetricsFold(), PhaseFold()
    if base is not None:
        metrics.restore(base.metrics)
        phases.restore(base.phases)
    for number, event in enumerate(events, 1):
        fold.apply(event)
        phases.apply(event)
        metrics.apply(event)
        if isinstance(event, Checkpointed):
            found = fold.snapshot(event, phases=tuple(phases.phases), metrics=metrics.totals)
            if found is not None:
                yield number, found


def known(state: RunState) -> dict[str, object]:
    """What a controller reads of a state."""
    return {
        **{
            name: getattr(state, name)
            for name in ("num_starts", "num_admitted", "num_refused", "num_trained", "step", "published_step")
        },
        "last": (state.version, state.last_t, state.evaluated_step, state.last_prompt and state.last_prompt.prompt_id),
        "slots": sorted((a.index, a.prompt_id, a.version) for a in state.admissions.values()),
        "refused": sorted(state.refused),
        "trees": {name: codec.encode(tree.group()) for name, tree in state.trees.items()},
        "groups": {name: codec.encode(group) for name, group in state.groups.items()},
        "usage": state.usage,
        "checkpoint": state.checkpoints[-1].step if state.checkpoints else 0,
    }


@settings(max_examples=8)
@given(deterministic=st.booleans(), refuse=st.integers(2, 9), end=st.integers(0, 400))
def test_a_snapshot_and_what_follows_it_give_the_state_of_everything(
    tokenizer: HfTokenizer, deterministic: bool, refuse: int, end: int
) -> None:
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2, eval_every=3, deterministic=deterministic)
    refuses = lambda name: int(name[-3:]) % refuse == 1  # noqa: E731 - depends on the example
    events = World(tokenizer, train=train, rollout=small(), refuses=refuses).run().events
    found = list(taken(events))
    assert len(found) >= 2
    for number, base in found:
        base = codec.Decoder[Snapshot](Snapshot).decode(codec.encode(base))
        until = events[: number + end]
        assert known(folded(until[number:], base)) == known(folded(until))
        later = [one for at, one in found if at > number]
        assert [codec.encode(one) for _, one in taken(events[number:], base)] == [codec.encode(one) for one in later]


def test_no_snapshot_is_taken_behind_a_checkpoint_that_was_made_again(tokenizer: HfTokenizer) -> None:
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2)
    events = World(tokenizer, train=train, rollout=small()).run().events
    mended = Checkpointed(step=2, version=2, path="checkpoint-2")
    assert [one.checkpoint.step for _, one in taken([*events, mended])] == [2, 4, 6]


def journaled(folder: Path, events: list[AnyEvent]) -> None:
    snapshots = dict(taken(events))
    with Journal(folder) as file:
        for number, event in enumerate(events, 1):
            file.append(event)
            if number in snapshots:
                snapshot.write(file.roll(), snapshots[number])


def test_reading_begins_behind_the_older_of_two_checkpoints_that_are_there(
    tokenizer: HfTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = TrainConfig(batch_size=4, max_staleness=1, checkpoint_every=2)
    journaled(tmp_path, World(tokenizer, train=train, rollout=small()).run().events)

    def begin(*steps: int) -> tuple[int, int | None]:
        paths = {f"checkpoint-{step}" for step in steps}
        number, base = snapshot.where_to_begin(tmp_path, is_there=paths.__contains__)
        return number, None if base is None else base.checkpoint.step

    assert begin(2, 4, 6) == (3, 4)
    assert begin(2, 4) == (2, 2)
    assert begin(6) == begin() == (0, None), "all of it is still there"

    journal.retire(tmp_path, before=3, retain="checkpoint")
    assert begin(4, 6) == (3, 4)
    assert begin(4) == (3, 4)
    assert begin(6) == (4, 6)
    with pytest.raises(DataError, match="no checkpoint is there any more"):
        begin()
    damaged = bytearray(journal.snapshot_of(tmp_path / "000004.log").read_bytes())
    damaged[-1] ^= 1
    journal.snapshot_of(tmp_path / "000004.log").write_bytes(damaged)
    assert begin(4, 6) == (3, 4)
    assert "000004.snapshot: damaged; more of the journal is read instead" in caplog.text

"""Snapshots: what all events before a checkpoint came to, so that a resumed run need not read them again.

A snapshot is no event and nothing is folded from it alone: it holds the events of the prompts that are under way, and
counts of the rest. Applied to an empty `RunState` it gives the state that all events would have given, but for
what was trained before the checkpoint.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from engine import codec
from engine.errors import DataError
from engine.events import (
    AnyEvent,
    AnyTreeEvent,
    BatchTaken,
    Checkpointed,
    ControlEvaluated,
    Evaluated,
    Forked,
    ForkRanked,
    GroupFinished,
    GroupRefused,
    PathStarted,
    PromptAdmitted,
    RunStarted,
    ToolFinished,
    TreeEvent,
    WeightsPublished,
)
from engine.journal import is_whole, number_of, segments, snapshot_of
from engine.metrics import MetricsTotals
from engine.phases import Phase
from engine.records import Record, pack, scan
from engine.run_state import CohortUse, RunState
from engine.types import Prompt, Version

logger = logging.getLogger(__name__)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Written behind a checkpoint; read by whoever goes on from it."""

    checkpoint: Checkpointed
    num_starts: int
    num_admitted: int
    num_refused: int
    num_trained: int
    version: Version
    last_prompt: Prompt | None
    last_t: float
    used: dict[int, CohortUse]
    """By cohort, by trees that left it."""
    refused: tuple[PromptAdmitted, ...]
    events: tuple[AnyTreeEvent, ...]
    """Of the prompts that hold a slot, each from its admission on."""
    evaluations: tuple[Evaluated, ...]
    control: ControlEvaluated | None
    phases: tuple[Phase, ...]
    metrics: MetricsTotals

    def restore(self) -> RunState:
        """The state behind the checkpoint."""
        state = RunState()
        for event in self.events:
            state.apply(event)
        state.num_starts = self.num_starts
        state.num_admitted = self.num_admitted
        state.num_refused = self.num_refused
        state.num_trained = self.num_trained
        state.last_prompt = self.last_prompt
        state.last_t = self.last_t
        state.step = state.published_step = self.checkpoint.step
        state.version = self.version
        state.used = {number: replace(use) for number, use in self.used.items()}
        state.refused = {admitted.prompt_id: admitted for admitted in self.refused}
        state.checkpoints = (self.checkpoint,)
        state.evaluated_step = max((event.step for event in self.evaluations), default=-1)
        return state


class SnapshotFold:
    """`apply` every event of a run: keeps by reference what a snapshot would hold."""

    def __init__(self, base: Snapshot | None = None) -> None:
        """`base` is where the events begin, if that is not at the first one."""
        self._kept: dict[str, list[AnyTreeEvent]] = {}
        self._cohorts: dict[str, int] = {}
        self._refused: dict[str, PromptAdmitted] = {}
        self._used: dict[int, CohortUse] = {}
        self._evaluations: list[Evaluated] = []
        self._control: ControlEvaluated | None = None
        self._num_starts = self._num_admitted = self._num_refused = self._num_trained = 0
        self._version: Version = 0
        self._last_prompt: Prompt | None = None
        self._last_t = 0.0
        self._taken_step = 0
        if base is not None:
            self._go_on_from(base)

    def apply(self, event: AnyEvent) -> None:
        self._last_t = max(self._last_t, event.t)
        match event:
            case PromptAdmitted():
                self._num_admitted += 1
                self._last_prompt = event.prompt
                self._kept[event.prompt_id] = [event]
                self._cohorts[event.prompt_id] = event.cohort
            case GroupFinished():
                self._kept[event.prompt_id].append(event)
                self._leave(event.prompt_id)
            case GroupRefused():
                self._refuse(event.prompt_id)
            case TreeEvent():
                self._kept[event.prompt_id].append(event)
            case RunStarted():
                self._num_starts += 1
            case BatchTaken():
                self._taken_step = event.step
                self._num_trained += len(event.prompt_ids)
            case WeightsPublished():
                self._version = event.version
                self._refused = {name: a for name, a in self._refused.items() if a.cohort >= event.step}
                for name in event.prompt_ids:
                    self._kept.pop(name, None)
            case Evaluated():
                self._evaluations.append(event)
            case ControlEvaluated():
                self._control = event
            case _:
                pass

    def snapshot(
        self, checkpoint: Checkpointed, *, phases: tuple[Phase, ...], metrics: MetricsTotals
    ) -> Snapshot | None:
        """As of now, right behind a checkpoint; None where batches were taken since that step (a torn one was written
        again): the ones before it still hold."""
        if checkpoint.step != self._taken_step:
            return None
        return Snapshot(
            checkpoint=checkpoint,
            num_starts=self._num_starts,
            num_admitted=self._num_admitted,
            num_refused=self._num_refused,
            num_trained=self._num_trained,
            version=self._version,
            last_prompt=self._last_prompt,
            last_t=self._last_t,
            used={number: replace(use) for number, use in self._used.items()},
            refused=tuple(self._refused.values()),
            events=tuple(event for events in self._kept.values() for event in events),
            evaluations=tuple(self._evaluations),
            control=self._control,
            phases=phases,
            metrics=metrics,
        )

    def _go_on_from(self, base: Snapshot) -> None:
        for event in base.events:
            self.apply(event)
        self._used = {number: replace(use) for number, use in base.used.items()}
        self._refused = {admitted.prompt_id: admitted for admitted in base.refused}
        self._evaluations = list(base.evaluations)
        self._control = base.control
        self._num_starts, self._num_admitted = base.num_starts, base.num_admitted
        self._num_refused, self._num_trained = base.num_refused, base.num_trained
        self._version, self._last_prompt, self._last_t = base.version, base.last_prompt, base.last_t
        self._taken_step = base.checkpoint.step

    def _leave(self, prompt_id: str) -> None:
        use = self._used.setdefault(self._cohorts.pop(prompt_id), CohortUse())
        use.num_trees += 1
        for event in self._kept[prompt_id]:
            use.num_leaves += isinstance(event, PathStarted | Forked)
            use.num_ranked += isinstance(event, ForkRanked)
            use.num_calls += isinstance(event, ToolFinished) and event.result.was_executed

    def _refuse(self, prompt_id: str) -> None:
        self._num_refused += 1
        if prompt_id in self._cohorts:
            self._leave(prompt_id)
        admitted = self._kept.pop(prompt_id)[0]
        assert isinstance(admitted, PromptAdmitted)
        self._refused[prompt_id] = admitted


_DECODER: codec.Decoder[Snapshot] = codec.Decoder(Snapshot)


def write(path: Path, snapshot: Snapshot) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(pack(snapshot.checkpoint.step, codec.encode(snapshot)))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> Snapshot | None:
    """None, with a warning, for one that is damaged; without one where there is none."""
    if not path.exists():
        return None
    records = list(scan(path))
    if len(records) == 1 and isinstance(records[0], Record):
        try:
            return _DECODER.decode(records[0].payload)
        except msgspec.DecodeError as error:
            logger.warning("%s: not a snapshot: %s", path, error)
    else:
        logger.warning("%s: damaged; more of the journal is read instead", path)
    return None


def where_to_begin(folder: Path, *, is_there: Callable[[str], bool]) -> tuple[int, Snapshot | None]:
    """The segment from which a resumed run reads, and the snapshot before it; the first one, and None, for all of it.

    Two checkpoints are kept, for where the newest turns out to be torn, so this is the one behind the older; `is_there`
    says whether the checkpoint of a path is. Raises `DataError` where none is, and the journal no longer goes back to
    the beginning.
    """
    found = ((number_of(path), load(snapshot_of(path))) for path in segments(folder))
    good = [(number, one) for number, one in found if one is not None and is_there(one.checkpoint.path)]
    if len(good) > 1:
        return good[-2]
    if is_whole(folder):
        return 0, None
    if good:
        return good[-1]
    raise DataError(
        f"{folder}: it begins behind a checkpoint (journal.retain), and no checkpoint is there any more; "
        "bring one back, or start anew with --fresh"
    )

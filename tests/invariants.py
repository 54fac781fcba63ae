"""What must hold of the events of a run, at whatever moment it ended; each function names what does not."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from engine.events import (
    AnyEvent,
    BatchTaken,
    Forked,
    GroupRefused,
    PathEnded,
    PathStarted,
    PromptAdmitted,
    Rewarded,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    ToolRerun,
    WeightsPublished,
)
from tests.control_world import World


def broken(world: World, *, is_finished: bool) -> list[str]:
    """The invariants that a life of a run broke, its earlier lives included."""
    events = world.events
    found = [*_once(events), *_slots(world), *_budgets(world), *_versions(events), *_batches(world)]
    if is_finished:
        found += _finished(world)
    return found


def _once(events: list[AnyEvent]) -> Iterator[str]:
    """No prompt is admitted or trained twice, no call asked for, answered or run again twice."""
    for kind in (ToolRequested, ToolFinished, ToolRerun):
        calls = Counter((e.prompt_id, e.path, e.index) for e in events if isinstance(e, kind))
        if calls and max(calls.values()) > 1:
            yield f"{kind.__name__} twice: {calls.most_common(1)}"
    for kind in (PromptAdmitted, GroupRefused):
        names = Counter(e.prompt_id for e in events if isinstance(e, kind))
        if names and max(names.values()) > 1:
            yield f"{kind.__name__} twice: {names.most_common(1)}"
    trained = Counter(name for e in events if isinstance(e, BatchTaken) for name in e.prompt_ids)
    if trained and max(trained.values()) > 1:
        yield f"trained twice: {trained.most_common(1)}"
    steps = [e.step for e in events if isinstance(e, BatchTaken)]
    if steps != list(range(1, len(steps) + 1)):
        yield f"steps {steps}"


def _slots(world: World) -> Iterator[str]:
    """At most B prompts hold one, and a prompt is admitted under the version that was published last."""
    num_slots = (world.train.max_staleness + 1) * world.train.batch_size
    held: set[str] = set()
    version = 0
    for event in world.events:
        match event:
            case PromptAdmitted():
                held.add(event.prompt_id)
                if len(held) > num_slots:
                    yield f"{len(held)} prompts hold {num_slots} slots"
                if event.version != version:
                    yield f"{event.prompt_id} admitted under version {event.version}, published was {version}"
            case GroupRefused():
                held.discard(event.prompt_id)
            case WeightsPublished():
                version = event.version
                held -= set(event.prompt_ids)
            case _:
                pass


def _budgets(world: World) -> Iterator[str]:
    budget = world.rollout_config.budget
    cohorts = {e.prompt_id: e.cohort for e in world.of(PromptAdmitted)}
    ran = [e for e in world.of(ToolFinished) if e.result.was_executed]
    leaves = Counter(cohorts[e.prompt_id] for e in world.events if isinstance(e, PathStarted | Forked))
    counts = (
        ("calls_per_path", budget.calls_per_path, Counter((e.prompt_id, e.path) for e in ran)),
        ("calls_per_prompt", budget.calls_per_prompt, Counter(e.prompt_id for e in ran)),
        ("calls_per_cohort", budget.calls_per_cohort, Counter(cohorts[e.prompt_id] for e in ran)),
        ("calls_per_run", budget.calls_per_run, Counter(["run"] * len(ran))),
        ("leaves_per_cohort", budget.leaves_per_cohort, leaves),
        (
            "size",
            world.rollout_config.size,
            Counter(e.prompt_id for e in world.events if isinstance(e, PathStarted | Forked)),
        ),
    )
    for name, limit, used in counts:
        if limit is not None and used and max(used.values()) > limit:
            yield f"{name} is {limit}, used are {max(used.values())}"


def _versions(events: list[AnyEvent]) -> Iterator[str]:
    """No token of a path is older than one before it, and none is newer than what was published or is about to be."""
    newest: dict[tuple[str, int], int] = {}
    for event in events:
        if isinstance(event, TokensSampled) and event.versions.size:
            where = (event.prompt_id, event.path)
            if int(event.versions.min()) < newest.get(where, 0):
                yield f"{where}: version {int(event.versions.min())} behind {newest[where]}"
            newest[where] = int(event.versions.max())


def _batches(world: World) -> Iterator[str]:
    """Groups are whole and scored, and no trained token is too old."""
    # A step whose groups were all refused changes no weights.
    full = [e.step for e in world.of(BatchTaken) if e.prompt_ids]
    for batch in world.trainer.batches:
        version = sum(step < batch.step for step in full)
        for sample in batch.samples:
            group = sample.group
            if version - group.oldest_version > world.train.max_staleness:
                yield f"step {batch.step}: {group.prompt.prompt_id} is from version {group.oldest_version}"
            if any(t.reward.reason == "never scored" for t in group.trajectories):
                yield f"step {batch.step}: {group.prompt.prompt_id} is not whole"
            if any(np.asarray(a).size == 0 for a in sample.advantages):
                yield f"step {batch.step}: {group.prompt.prompt_id} has an empty trajectory"


def _finished(world: World) -> Iterator[str]:
    """Every prompt was trained, or refused with a reason; every path has an end and a reward; nothing is set aside."""
    admitted = {e.prompt_id for e in world.of(PromptAdmitted)}
    trained = {name for e in world.of(BatchTaken) for name in e.prompt_ids}
    refused = {e.prompt_id for e in world.of(GroupRefused) if e.reason}
    if len(admitted) != world.rows.count or trained | refused != admitted or trained & refused:
        yield f"{len(admitted)} admitted, {len(trained)} trained, {len(refused)} refused"
    paths = {
        (e.prompt_id, e.path if isinstance(e, PathStarted) else e.child)
        for e in world.events
        if isinstance(e, PathStarted | Forked)
    }
    for kind in (PathEnded, Rewarded):
        if {(e.prompt_id, e.path) for e in world.of(kind)} != paths:
            yield f"{kind.__name__} is not there for every path"
    controller = getattr(world, "controller", None)
    if controller is not None and controller.num_reserved:
        yield f"{controller.num_reserved} reservations were never settled"

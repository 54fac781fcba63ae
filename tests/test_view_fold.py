"""The folds behind the page: increments that add up to the whole, and figures that agree with the engine's own."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.view.activity import Activity
from actors.view.run_fold import RunFold
from actors.view.run_view import RunView
from actors.view.spans import AnySpan, CallSpan, GroupSpan, LearnerSpan, PathSpan, SpanFold
from actors.view.tail import Place
from engine.events import (
    AnyEvent,
    BatchTaken,
    GroupFinished,
    PathEnded,
    PathStarted,
    PromptAdmitted,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    TreeEvent,
)
from engine.metrics import MetricsFold
from tests.view_runs import make_run, same, texts, whole_run

NOWHERE = Place(1, 0, 0)
KEYS: dict[str, Any] = {
    "steps": lambda row: row["step"],
    "evaluations": lambda row: row["step"],
    "supervised": lambda row: (row["number"], row["step"]),
    "learner": lambda span: (span[0], span[1]),
    "generators": lambda level: (level["t"], level["busy_s"]),
    "trees": lambda row: row["id"],
}
"""As the page's own store tells them apart."""
EVENTS = whole_run(num_steps=5, num_groups=4)


def folded(events: Iterable[AnyEvent]) -> RunFold:
    fold = RunFold()
    for event in events:
        fold.apply(event, NOWHERE, revision=1)
    return fold


def spans_of(events: Iterable[AnyEvent]) -> list[AnySpan]:
    fold = SpanFold()
    return [span for event in events for span in fold.apply(event)]


class Copy:
    """What a page has that was told of changes alone."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[Any, Any]] = {name: {} for name in KEYS}
        self.tools: Any = None
        self.width_s = 0.0
        self.series: dict[str, list[float]] = {}

    def apply(self, changes: dict[str, Any]) -> None:
        for name, key in KEYS.items():
            self.kept[name] |= {key(value): value for value in changes.get(name, [])}
        self.tools = changes.get("tools", self.tools)
        if (bins := changes.get("activity")) is not None:
            if bins["width_s"] != self.width_s or bins["start"] == 0:
                self.width_s, self.series = bins["width_s"], {}
            for name, values in bins["series"].items():
                known = self.series.setdefault(name, [])[: bins["start"]]
                self.series[name] = [*known, *[0.0] * (bins["start"] - len(known)), *values]


@given(cuts=st.lists(st.integers(0, len(EVENTS)), max_size=8), max_bins=st.sampled_from((8, 64, 4096)))
@settings(max_examples=25, deadline=None)
def test_increments_from_any_cuts_add_up_to_the_whole(cuts: list[int], max_bins: int) -> None:
    fold, copy, since = RunFold(), Copy(), -1
    fold.activity = Activity(max_bins=max_bins)
    for revision, (start, end) in enumerate(zip([0, *sorted(cuts)], [*sorted(cuts), len(EVENTS)], strict=True), 1):
        for event in EVENTS[start:end]:
            fold.apply(event, NOWHERE, revision=revision)
        copy.apply(fold.changes(since))
        since = revision
    whole = Copy()
    whole.apply(fold.changes(-1))
    assert copy.kept == whole.kept
    assert same(copy.tools, whole.tools)
    assert copy.series == whole.series
    assert fold.changes(since) == {}


@given(
    moments=st.lists(st.tuples(st.floats(0.001, 3.0), st.integers(0, 5)), min_size=1, max_size=30),
    max_bins=st.sampled_from((2, 8, 64)),
)
def test_bins_hold_levels_times_seconds_however_often_they_are_put_together(
    moments: list[tuple[float, int]], max_bins: int
) -> None:
    activity, t, expected = Activity(max_bins=max_bins, first_width_s=0.05), 0.0, 0.0
    for step_s, level in moments:
        t += step_s
        expected += step_s * level
        activity.advance(t, {"paths": level})
    assert activity.total("paths") == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert activity.num_bins <= max_bins


def test_a_path_is_in_one_state_after_another_from_its_start_to_its_end() -> None:
    starts = {(e.prompt_id, e.path): e.t for e in EVENTS if isinstance(e, PathStarted)}
    ends = {(e.prompt_id, e.path): e.t for e in EVENTS if isinstance(e, PathEnded)}
    by_path: dict[tuple[str, int], list[PathSpan]] = {}
    for span in spans_of(EVENTS):
        if isinstance(span, PathSpan):
            by_path.setdefault((span.prompt_id, span.path), []).append(span)
    for key, start_s in starts.items():
        spans = by_path[key]
        assert spans[0].start_s == start_s
        assert spans[-1].end_s == ends[key]
        assert all(one.end_s == other.start_s for one, other in pairwise(spans))
        assert [span.state for span in spans[:3]] == ["sampling", "tool", "sampling"]


def test_spans_have_every_token_call_and_group_once() -> None:
    spans = spans_of(EVENTS)
    sampled = sum(event.token_ids.size for event in EVENTS if isinstance(event, TokensSampled))
    assert sum(span.num_tokens for span in spans if isinstance(span, PathSpan)) == sampled
    calls = [span for span in spans if isinstance(span, CallSpan)]
    assert len(calls) == sum(isinstance(event, ToolFinished) for event in EVENTS)
    admitted = {event.prompt_id for event in EVENTS if isinstance(event, PromptAdmitted)}
    assert {span.prompt_id for span in spans if isinstance(span, GroupSpan)} == admitted


def test_the_learner_waits_steps_and_publishes_for_as_long_as_the_journal_says() -> None:
    waits = {e.step: e.wait_s for e in EVENTS if isinstance(e, BatchTaken)}
    for span in spans_of(EVENTS):
        if isinstance(span, LearnerSpan) and span.state == "waiting":
            assert span.end_s - span.start_s == pytest.approx(waits[span.step])


def test_levels_are_back_at_zero_when_everything_has_ended() -> None:
    fold = SpanFold()
    for event in EVENTS:
        fold.apply(event)
    assert set(fold.levels.values()) == {0}
    assert set(fold.calls.values()) == {0}


def test_what_the_timeline_shows_is_what_the_spans_add_up_to() -> None:
    fold = folded(EVENTS)
    seconds = sum(span.end_s - span.start_s for span in spans_of(EVENTS) if isinstance(span, CallSpan))
    tools = sum(fold.activity.total(f"tool:{name}") for name in ("search", "python"))
    assert tools == pytest.approx(seconds)


def test_steps_are_those_of_the_metrics() -> None:
    metrics = MetricsFold()
    rows = [row for event in EVENTS if (row := metrics.apply(event)) is not None]
    assert same(folded(EVENTS).changes(-1)["steps"], rows)


def test_a_tree_that_was_trained_says_when_and_with_what() -> None:
    fold = folded(EVENTS)
    taken = {name: event for event in EVENTS if isinstance(event, BatchTaken) for name in event.prompt_ids}
    finished = {event.prompt_id: event.t for event in EVENTS if isinstance(event, GroupFinished)}
    for row in fold.rows:
        assert row.finished_s == finished[row.id]
        if row.id in taken:
            assert (row.state, row.step, row.taken_s) == ("trained", taken[row.id].step, taken[row.id].t)
        else:
            assert (row.state, row.reason) == ("refused", "no learning signal")
        last = row.last
        assert last is not None
        assert last.sampling_s + last.tool_s + last.scoring_s <= row.finished_s - row.admitted_s + 1e-9


def test_every_call_of_a_tool_is_counted_in_one_outcome() -> None:
    table = folded(EVENTS).tools.table
    requested = sum(isinstance(event, ToolRequested) for event in EVENTS)
    assert sum(row.requested for row in table.tools) == requested
    for row in table.tools:
        assert row.executed + row.cached + row.shared + row.refused + row.malformed == row.requested
        assert sum(row.histogram) == row.executed
    failed = [event.result for event in EVENTS if isinstance(event, ToolFinished) and event.result.status != "ok"]
    assert sum(row.errors + row.timeouts for row in table.tools) == len(failed)
    assert len(table.failures) == min(len(failed), 100)
    assert [call.duration_s for call in table.slow] == sorted((c.duration_s for c in table.slow), reverse=True)


def test_a_view_of_a_run_that_goes_on_tells_only_what_is_new(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", EVENTS[:-300])
    view = RunView(run, texts=texts())
    view.refresh()
    first = view.changes()
    assert first["is_whole"]
    assert set(view.changes(view.cursor)) == {"cursor", "is_whole", "run"}
    make_run(tmp_path / "run", EVENTS[-300:])
    view.refresh()
    later = view.changes(first["cursor"])
    assert not later["is_whole"]
    assert 0 < len(later["trees"]) < len(view.fold.rows)
    assert later["run"]["status"] == "finished"


def test_a_run_that_was_begun_anew_is_told_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", EVENTS)
    view = RunView(run, texts=texts())
    view.refresh()
    cursor = view.cursor
    for path in run.journal.glob("*.log"):
        path.unlink()
    make_run(tmp_path / "run", EVENTS[:50])
    view.refresh()
    view.refresh()
    changes = view.changes(cursor)
    assert changes["is_whole"]
    assert changes["run"]["num_trees"] == len(folded(EVENTS[:50]).rows)


def test_a_journal_without_its_beginning_shows_the_whole_trees_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", EVENTS[:300])
    make_run(tmp_path / "run", EVENTS[300:])
    (run.journal / "000001.log").unlink()
    view = RunView(run, texts=texts())
    view.refresh_all()
    assert view.changes()["run"]["is_partial"]
    later = {event.prompt_id for event in EVENTS[300:] if isinstance(event, PromptAdmitted)}
    assert {row.id for row in view.fold.rows} == later


def test_batches_of_conversations_that_are_not_in_the_journal_are_steps_without_trees(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [event for event in EVENTS if not isinstance(event, TreeEvent)])
    view = RunView(run, texts=texts())
    view.refresh_all()
    changes = view.changes()
    assert [row["step"] for row in changes["steps"]] == [1, 2, 3, 4, 5]
    assert "trees" not in changes
    assert not changes["run"]["is_partial"]


def test_damage_is_told_and_what_came_before_it_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", EVENTS)
    (path,) = run.journal.glob("*.log")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + Random(0).randrange(50)] ^= 1
    path.write_bytes(data)
    view = RunView(run, texts=texts())
    while view.refresh(max_events=500):
        pass
    assert "damaged" in view.changes()["run"]["error"]
    assert view.fold.rows

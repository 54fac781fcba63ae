"""The parts of a run and how long they took, over all processes that worked on it."""

import hypothesis.strategies as st
from hypothesis import given

from engine.events import AnyEvent, Checkpointed, PhaseStarted, RunStarted, SupervisedStep
from engine.phases import Phase, PhaseFold
from engine.reports import StepReport


def report(step: int) -> StepReport:
    zeros = dict.fromkeys(
        ("loss", "grad_norm", "learning_rate", "entropy", "kl_rollout", "ratio_max", "clip_fraction", "duration_s"), 0.0
    )
    return StepReport(step=step, version=step, num_trained_tokens=0, num_computed_tokens=0, **zeros)


def begun(t: float) -> AnyEvent:
    return RunStarted(t=t, run="r", config_digest="d")


def other(t: float) -> AnyEvent:
    return Checkpointed(t=t, step=1, version=1, path="")


def folded(*events: AnyEvent) -> PhaseFold:
    fold = PhaseFold()
    for event in events:
        fold.apply(event)
    return fold


def test_a_phase_lasts_until_the_next_one_begins_or_its_last_event() -> None:
    fold = folded(begun(0.0), PhaseStarted(t=1.0, name="cold start", total=9), other(2.0))
    assert fold.phases == [Phase("cold start", 1.0, 2.0, 9)]
    fold.apply(PhaseStarted(t=4.0, name="learning"))
    assert [(phase.name, phase.wall_s, phase.total) for phase in fold.phases] == [
        ("cold start", 3.0, 9),
        ("learning", 0.0, None),
    ]
    fold.apply(other(9.0))
    assert [phase.wall_s for phase in fold.phases] == [3.0, 5.0]


def test_the_time_between_two_processes_belongs_to_no_phase() -> None:
    """What a process did after its last event is lost, and so is what it takes the next one to begin."""
    fold = folded(
        begun(0.0), PhaseStarted(t=1.0, name="learning"), other(3.0), begun(50.0), PhaseStarted(t=60.0, name="start")
    )
    assert [(phase.start_s, phase.end_s) for phase in fold.phases] == [(1.0, 3.0), (60.0, 60.0)]


def test_events_of_the_next_process_do_not_go_on_with_an_old_phase() -> None:
    fold = folded(begun(0.0), PhaseStarted(t=1.0, name="learning"), other(3.0), begun(5.0), other(6.0))
    assert [(phase.start_s, phase.end_s) for phase in fold.phases] == [(1.0, 3.0)]


def test_a_phase_that_was_interrupted_counts_with_all_its_parts() -> None:
    fold = folded(
        PhaseStarted(t=1.0, name="learning"),
        PhaseStarted(t=3.0, name="evaluation"),
        PhaseStarted(t=4.0, name="learning"),
        other(5.5),
        begun(6.0),
        PhaseStarted(t=8.0, name="learning"),
        other(9.0),
    )
    assert fold.wall_s("learning") == 2.0 + 1.5 + 1.0
    assert fold.wall_s("evaluation") == 1.0
    assert fold.wall_s("control") == 0.0


def test_supervised_steps_are_those_of_their_phase() -> None:
    fold = folded(
        PhaseStarted(t=1.0, name="cold start"),
        SupervisedStep(t=2.0, report=report(1)),
        SupervisedStep(t=3.0, report=report(2)),
        PhaseStarted(t=4.0, name="control"),
        SupervisedStep(t=5.0, report=report(1)),
    )
    assert [[r.step for r in phase.reports] for phase in fold.phases] == [[1, 2], [1]]
    assert [phase.wall_s for phase in fold.phases] == [3.0, 1.0]


@given(kinds=st.lists(st.sampled_from(["run", "phase", "other"]), max_size=12), gaps=st.lists(st.integers(0, 5)))
def test_phases_are_disjoint_and_no_second_is_counted_twice(kinds: list[str], gaps: list[int]) -> None:
    events: list[AnyEvent] = []
    t = 0.0
    for kind, gap in zip(kinds, gaps, strict=False):
        t += gap
        events.append({"run": begun(t), "phase": PhaseStarted(t=t, name=f"{t}"), "other": other(t)}[kind])
    phases = folded(*events).phases
    assert len(phases) == sum(isinstance(event, PhaseStarted) for event in events)
    edges = [edge for phase in phases for edge in (phase.start_s, phase.end_s)]
    assert edges == sorted(edges)
    assert sum(phase.wall_s for phase in phases) <= t

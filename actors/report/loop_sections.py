"""How the loop ran: tool calls, staleness, waiting and the agreement of rollout and learner, step by step."""

from statistics import fmean, median

from actors.quantities import count, duration, percent
from actors.report.charts import BLUE, GREEN, OCHRE, RUST, Line, Lines
from actors.report.plots import draw
from actors.report.record import RunRecord
from actors.report.section import Figure, Section, number
from actors.report.success import outcomes
from actors.report.timing import generate_seconds


def calls_section(record: RunRecord) -> Section:
    """Tool calls per step and per trajectory."""
    rows = record.rows
    requested = sum(row.num_tool_calls_requested for row in rows)
    if not requested:
        return Section(key="calls", title="Tool calls", sentences=["No step has a tool call."])
    executed = sum(row.num_tool_calls_executed for row in rows)
    steps = [row.step for row in rows]
    outcome = outcomes(record)
    known = [step for step in outcome if step.num_trajectories]
    per_step = Lines(
        lines=[
            Line(x=steps, y=[r.num_tool_calls_requested for r in rows], label="requested", colour=OCHRE, form="dashed"),
            Line(x=steps, y=[r.num_tool_calls_executed for r in rows], label="executed", colour=BLUE),
        ],
        x_label="step",
        y_label="tool calls a step",
        from_zero=True,
    )
    per_path = Lines(
        lines=[
            Line(x=steps, y=[step.calls for step in outcome], label="on its path", colour=OCHRE, form="dashed"),
            Line(x=steps, y=[step.executed for step in outcome], label="executed", colour=BLUE),
        ],
        x_label="step",
        y_label="tool calls a trajectory",
        from_zero=True,
    )
    sentences = [
        f"Training requested {count(requested)} tool calls and executed {count(executed)} "
        f"({percent(executed / requested)}); the others came from a cache, were malformed, or were beyond the budget."
        if executed < requested
        else f"Training requested {count(requested)} tool calls, and all of them were executed."
    ]
    if known:
        total = sum(step.num_trajectories for step in known)
        on_path = sum(step.calls * step.num_trajectories for step in known) / total
        paid = sum(step.executed * step.num_trajectories for step in known) / total
        sentences.append(
            f"A trajectory saw the results of {number(on_path)} calls on its path, for {number(paid)} that were "
            "executed for it: a branch inherits those before its fork."
            if paid < on_path
            else f"A trajectory saw the results of {number(on_path)} calls, and as many were executed for it."
        )
    figures = [
        Figure(svg=draw(per_step, name="calls", alt=f"{requested} calls requested, {executed} executed, by step")),
        Figure(svg=draw(per_path, name="path-calls", alt="Tool calls of a trajectory, by step")),
    ]
    return Section(key="calls", title="Tool calls", sentences=sentences, figures=figures)


def loop_section(record: RunRecord) -> Section:
    """Staleness, seconds, KL and ratio of each step."""
    rows = record.rows
    title = "Staleness, waiting and agreement"
    if not rows:
        return Section(key="loop", title=title, sentences=["No step was finished."])
    steps = [row.step for row in rows]
    stale = Lines(
        lines=[Line(x=steps, y=[r.staleness for r in rows], form="steps")],
        x_label="step",
        y_label="staleness of the oldest trained token, versions",
        from_zero=True,
        y_max=max(max(r.staleness for r in rows), 1) * 1.15,
    )
    generated = generate_seconds(record)
    time_lines = [
        Line(x=steps, y=[r.step_s for r in rows], label="step", colour=BLUE),
        Line(x=steps, y=[r.wait_s for r in rows], label="wait", colour=RUST),
    ]
    if generated:
        time_lines.append(Line(x=steps, y=generated, label="generate", colour=GREEN, form="thin"))
    times = Lines(lines=time_lines, x_label="step", y_label="seconds a step", from_zero=True)
    kl = Lines(
        lines=[Line(x=steps, y=[r.kl_rollout for r in rows])],
        x_label="step",
        y_label="KL (rollout || train), nats a token",
        from_zero=True,
    )
    ratio = Lines(
        lines=[Line(x=steps, y=[r.ratio_max for r in rows])],
        x_label="step",
        y_label="largest train / rollout probability ratio",
    )
    stalest = max(r.staleness for r in rows)
    busy_s, wait_s = sum(r.step_s for r in rows), sum(r.wait_s for r in rows)
    sentences = [
        "Every step trained on tokens of the current weights alone."
        if stalest == 0
        else f"The oldest token of a step was {number(fmean(r.staleness for r in rows))} versions old on average, "
        f"and never more than {stalest}.",
        f"A step took {duration(median(r.step_s for r in rows))} (median) and waited "
        f"{duration(median(r.wait_s for r in rows))} for its batch: "
        f"{percent(wait_s / (busy_s + wait_s) if busy_s + wait_s else 0.0)} of both together was waiting.",
        f"Learner and generators disagreed by {number(median(r.kl_rollout for r in rows))} nats a token in the median "
        f"step, and {number(max(r.kl_rollout for r in rows))} at most.",
    ]
    figures = [
        Figure(svg=draw(stale, name="staleness", alt=f"Staleness by step, at most {stalest}")),
        Figure(svg=draw(times, name="seconds", alt="Seconds of each step: optimising, waiting, generating")),
        Figure(svg=draw(kl, name="kl", alt="KL divergence of rollout and learner, by step")),
        Figure(svg=draw(ratio, name="ratio", alt="Largest probability ratio, by step")),
    ]
    note = (
        "KL is the k3 estimate of KL(behaviour || train) over trained tokens, before the step; it grows with staleness."
    )
    return Section(key="loop", title=title, sentences=sentences, figures=figures, note=note)

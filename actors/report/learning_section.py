"""What training did: greedy success, success and reward over the steps, and the losses of supervised steps."""

import math
from collections.abc import Sequence
from statistics import fmean

from actors.quantities import count, percent
from actors.report.charts import BLUE, COLOURS, FAINT, GREEN, RUST, Level, Line, Lines
from actors.report.intervals import Estimate, difference
from actors.report.plots import draw
from actors.report.record import Curve, RunRecord
from actors.report.section import Figure, Section, counted, number, share_spread, with_spread
from actors.report.success import StepOutcome, measured, outcomes, running


def learning_section(record: RunRecord) -> Section:
    """Reward and success over the steps, with the control and the cold start beside them."""
    steps = outcomes(record)
    figures: list[Figure] = []
    if steps or record.evaluations:
        figures.append(_success_figure(record, steps))
    if steps:
        figures.append(_reward_figure(steps))
    if record.curves:
        figures.append(_loss_figure(record))
    sentences = [*_evaluation_sentences(record), *_step_sentences(steps)]
    if not record.curves:
        sentences.append("No supervised steps are recorded.")
    return Section(
        key="learning",
        title="Reward and success",
        sentences=sentences,
        figures=figures,
        note="Sampled success and reward are over all trajectories that ended in a step, also of the groups that were "
        "refused because all their rewards were equal. Intervals of greedy success are Wilson's, at 95 %."
        if steps
        else "",
    )


def verdict(before: Estimate, after: Estimate) -> str:
    """How one share stands to an earlier one, in words: a difference counts where its interval excludes 0.

    >>> from actors.report.intervals import wilson
    >>> verdict(wilson(0.3, 100), wilson(0.9, 100))
    '60 points higher'
    >>> verdict(wilson(0.5, 40), wilson(0.55, 40))
    'no different, as far as these questions can tell'
    """
    if not (before.has_interval and after.has_interval):
        points = round(100 * (after.value - before.value))
        return "the same" if not points else f"{abs(points)} points {'higher' if points > 0 else 'lower'}"
    shift = difference(before, after)
    if shift.low <= 0 <= shift.high:
        return "no different, as far as these questions can tell"
    return f"{abs(100 * shift.value):.0f} points {'higher' if shift.value > 0 else 'lower'}"


def _evaluation_sentences(record: RunRecord) -> list[str]:
    if not record.evaluations:
        return ["The run made no evaluation, so there is no greedy success to tell."]
    first, last = record.evaluations[0], record.evaluations[-1]
    before, after = measured(first.metrics), measured(last.metrics)
    questions = first.metrics.get("questions")
    asked = f" on {counted(int(questions), 'question')}" if questions else ""
    start = "Before the first step" if first.step == 0 else f"After step {first.step}"
    told = [f"{start}, greedy success{asked} was {with_spread(percent(before.value), share_spread(before))}."]
    if len(record.evaluations) > 1:
        value = with_spread(percent(after.value), share_spread(after))
        told.append(f"After step {last.step} it was {value}: {verdict(before, after)}.")
    if record.control is not None:
        control = measured(record.control.metrics)
        value = with_spread(percent(control.value), share_spread(control))
        told.append(
            f"The control, {counted(record.control.num_steps, 'more supervised step')} in place of reinforcement "
            f"learning, came to {value}; the trained policy is {verdict(control, after)}."
        )
    return told


def _step_sentences(steps: Sequence[StepOutcome]) -> list[str]:
    known = [step for step in steps if step.num_trajectories]
    if not known:
        return ["No step was finished." if not steps else "No trajectory ended."]
    third = max(len(known) // 3, 1)

    def mean(part: Sequence[StepOutcome]) -> float:
        return sum(s.success * s.num_trajectories for s in part) / sum(s.num_trajectories for s in part)

    total = sum(step.num_trajectories for step in known)
    told = f"Of {count(total)} sampled trajectories, {percent(mean(known))} were right"
    if len(known) >= 3:
        first, last = percent(mean(known[:third])), percent(mean(known[-third:]))
        told += f": {first} in the first third of the steps, {last} in the last"
    refused = [step.refused for step in known if not math.isnan(step.refused)]
    if any(refused):
        share = fmean(refused[-third:])
        told += f". Groups without a learning signal were {percent(share)} of all in the last third"
    return [told + "."]


def _success_figure(record: RunRecord, steps: Sequence[StepOutcome]) -> Figure:
    lines: list[Line] = []
    if steps:
        lines += _sampled(steps, [step.success for step in steps])
    evaluated = [(event.step, measured(event.metrics)) for event in record.evaluations]
    if evaluated:
        lines.append(_markers(evaluated, label="greedy", colour=RUST))
    levels: list[Level] = []
    if record.control is not None:
        levels.append(Level(y=measured(record.control.metrics).value, label="control", colour=GREEN))
    chart = Lines(lines=lines, levels=levels, x_label="step", y_label="success", is_share=True)
    ends = f", greedy {percent(evaluated[0][1].value)} to {percent(evaluated[-1][1].value)}" if evaluated else ""
    alt = f"Success over the steps{ends}"
    svg, wide = draw(chart, name="success", alt=alt), draw(chart, name="success-wide", alt=alt, width=1040, height=300)
    caption = "Share of trajectories that were right: sampled while training (thin: each step; thick: the mean of five "
    caption += "steps), and greedy where it was measured"
    return Figure(svg=svg, wide=wide, caption=caption + (", beside the control." if record.control else "."))


def _markers(points: Sequence[tuple[int, Estimate]], *, label: str, colour: str) -> Line:
    return Line(
        x=[step for step, _ in points],
        y=[estimate.value for _, estimate in points],
        low=[estimate.low for _, estimate in points],
        high=[estimate.high for _, estimate in points],
        label=label,
        colour=colour,
        form="markers",
    )


def _reward_figure(steps: Sequence[StepOutcome]) -> Figure:
    values = [step.reward for step in steps]
    chart = Lines(lines=_sampled(steps, values), x_label="step", y_label="mean reward")
    known = [value for value in values if not math.isnan(value)]
    alt = f"Mean reward over the steps, from {number(known[0])} to {number(known[-1])}" if known else "No reward"
    return Figure(svg=draw(chart, name="reward", alt=alt), caption="Mean reward of sampled trajectories.")


def _sampled(steps: Sequence[StepOutcome], values: Sequence[float]) -> list[Line]:
    """Each step, and over it the mean of five."""
    x, weights = [step.step for step in steps], [step.num_trajectories for step in steps]
    return [Line(x=x, y=values, form="thin"), Line(x=x, y=running(values, weights), label="sampled")]


def _loss_figure(record: RunRecord) -> Figure:
    lines = [
        Line(
            x=[report.step for report in curve.reports],
            y=[report.loss for report in curve.reports],
            label=curve.phase,
            colour=(FAINT, *COLOURS[1:])[number % len(COLOURS)] if len(record.curves) > 1 else BLUE,
        )
        for number, curve in enumerate(record.curves)
    ]
    if len(lines) == 1:
        lines = [Line(x=lines[0].x, y=lines[0].y)]
    is_log = all(loss > 0 for line in lines for loss in line.y)
    chart = Lines(lines=lines, x_label="supervised step", y_label="loss on traces, nats a token", is_log=is_log)
    names = "; ".join(_loss_change(curve) for curve in record.curves)
    caption = f"Loss from the first to the last supervised step: {names}."
    return Figure(svg=draw(chart, name="loss", alt=f"Loss of supervised steps: {names}"), caption=caption)


def _loss_change(curve: Curve) -> str:
    change = f"{number(curve.reports[0].loss)} to {number(curve.reports[-1].loss)}"
    return f"{curve.phase}, {change}" if curve.phase else change

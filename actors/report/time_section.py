"""Where the time went: phases of the run, and inside training what learner, generators and tools did."""

from collections.abc import Sequence

from actors.quantities import count, duration, percent
from actors.report.record import RunRecord
from actors.report.section import Section, Strip, Table, number
from actors.report.timing import REST, STEPPING, UNNAMED, WAITING, Rate, Share, Timing, measure

IDLE = "idle"


def time_section(record: RunRecord, *, num_generators: int) -> Section:
    """Strips of time, and what each part got done."""
    timing = measure(record)
    if not timing.total_s:
        return Section(key="time", title="Time by part", sentences=["Nothing was timed."])
    strips: list[Strip] = []
    if timing.phases:
        strips.append(_strip(f"The whole run, {duration(timing.total_s)}", timing.phases))
    if timing.learner:
        strips.append(_strip(f"The learner while training, {duration(timing.training_s)}", timing.learner))
    if timing.generators_busy_s is not None and timing.training_s:
        capacity_s = timing.training_s * num_generators
        busy = Share("forward passes", min(timing.generators_busy_s, capacity_s))
        name = "The generator" if num_generators == 1 else f"{num_generators} generators"
        strips.append(_strip(f"{name} in the same time", [busy, Share(IDLE, capacity_s - busy.seconds)]))
    if timing.tools_busy_s:
        busy = Share("at least one call under way", timing.tools_busy_s)
        idle = Share(IDLE, max(timing.training_s - timing.tools_busy_s, 0.0))
        strips.append(_strip("Tools in the same time", [busy, idle]))
    return Section(
        key="time",
        title="Time by part",
        sentences=_sentences(timing, num_generators=num_generators),
        strips=strips,
        tables=[_rates(timing.rates)] if timing.rates else [],
        note="Generators, tools and learner work at the same time, so their parts do not add up to the whole. "
        "A tool call counts from when it is asked for until its result is there, queueing included.",
    )


def _sentences(timing: Timing, *, num_generators: int) -> list[str]:
    told: list[str] = []
    if timing.phases:
        longest = max(timing.phases, key=lambda phase: phase.seconds)
        told.append(
            f"The run took {duration(timing.total_s)}; its longest part was {longest.name}, "
            f"{duration(longest.seconds)} ({percent(longest.seconds / timing.total_s)})."
        )
    else:
        told.append(f"The run took {duration(timing.total_s)}.")
    shares = {share.name: share.seconds / timing.training_s for share in timing.learner if timing.training_s}
    if shares:
        told.append(
            f"While training, the learner spent {percent(shares[STEPPING])} of the time in optimiser steps and "
            f"{percent(shares[WAITING])} waiting for a batch."
        )
    if timing.generators_busy_s is not None and timing.training_s:
        busy = min(timing.generators_busy_s / (timing.training_s * num_generators), 1.0)
        told.append(f"Generators were busy {percent(busy)} of it.")
    return told


def _strip(title: str, shares: Sequence[Share]) -> Strip:
    whole = sum(share.seconds for share in shares)
    parts = [
        (share.name, duration(share.seconds), share.seconds / whole if whole else 0.0, _colour(share.name, place))
        for place, share in enumerate(shares)
    ]
    return Strip(title=title, parts=parts)


def _colour(name: str, place: int) -> int:
    return -1 if name in (IDLE, UNNAMED, REST) else place


def _rates(rates: Sequence[Rate]) -> Table:
    rows = [(r.part, r.unit, count(r.amount), duration(r.busy_s), number(r.per_second)) for r in rates]
    return Table(columns=("part", "what", "how many", "busy", "a busy second"), rows=rows, num_text_columns=2)

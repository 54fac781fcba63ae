"""The harness of `arpo bench`: benches by name, run to a report that says what was measured, and on what."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import msgspec

from actors.bench import (
    async_bench,
    budget_bench,
    control_bench,
    decode_bench,
    end_to_end_bench,
    learner_bench,
    prefix_bench,
    sandbox_bench,
    serve_bench,
    tools_bench,
    weights_bench,
)
from actors.bench.bench import ArmReport, Bench, Records, Timeline, arm_report, measure
from actors.bench.record_store import RecordStore
from engine.errors import ConfigError


class Maker(Protocol):
    """Makes the parts of a bench, whose figures and arms go into one report; `folder` is for what the arms need."""

    def __call__(self, folder: Path, *, is_quick: bool) -> Sequence[Bench]: ...


MAKERS: dict[str, Maker] = {
    "decode": decode_bench.benches,
    "async": async_bench.benches,
    "prefix": prefix_bench.benches,
    "learner": learner_bench.benches,
    "weights": weights_bench.benches,
    "tools": tools_bench.benches,
    "sandbox": sandbox_bench.benches,
    "control": control_bench.benches,
    "serve": serve_bench.benches,
    "end-to-end": end_to_end_bench.benches,
    "tool-budget": budget_bench.benches,
}


RECORDS = Path("runs/bench")
"""Where records of runs are kept that are not to be made twice."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What figures depend on besides the code."""

    cpu: str
    cores: int
    """That this process may use."""
    torch: str
    omp_threads: str
    """OMP_NUM_THREADS; empty where it is not set."""


class BenchReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One bench: the JSON that `arpo bench NAME --json FILE` writes."""

    bench: str
    machine: Machine
    figures: dict[str, float]
    arms: dict[str, ArmReport]
    wall_s: float
    """That the whole bench took."""
    skipped: dict[str, str] = {}
    """Arms that were not run, and why."""
    timelines: dict[str, list[Timeline]] = {}


def run_bench(
    name: str,
    *,
    is_quick: bool,
    on_progress: Callable[[str], None],
    sglang_python: str | None = None,
    device: learner_bench.Device = "cpu",
    overrides: Sequence[str] = (),
    has_trl: bool = False,
    records: Path = RECORDS,
    seeds: int | None = None,
    jobs: int | None = None,
    arms: Sequence[str] = (),
) -> BenchReport:
    """Run one bench to its end. `sglang_python` is for `prefix`, `device` for `learner`, `overrides` for `control`,
    `has_trl` for `end-to-end`, `seeds` and `jobs` for `tool-budget`.

    `records` is the folder of what is kept from one time to the next, `arms` are those to be run; none is all of them.
    Raises `ConfigError` for a name that is none, and for keys where there are none.
    """
    if name not in MAKERS:
        raise ConfigError(f"no bench {name!r}: {', '.join(MAKERS)}")
    if overrides and name != "control":
        raise ConfigError(f"bench {name}: only `control` takes keys, got {overrides[0]!r}")
    makers: dict[str, Maker] = MAKERS | {
        "prefix": partial(prefix_bench.benches, sglang_python=sglang_python),
        "learner": partial(learner_bench.benches, device=device),
        "control": partial(control_bench.benches, overrides=overrides),
        "end-to-end": partial(end_to_end_bench.benches, has_trl=has_trl, say=on_progress),
        # What its runs share is worth keeping as well, so it works there.
        "tool-budget": partial(
            budget_bench.benches,
            kept=records / name,
            seeds=seeds or budget_bench.SEEDS,
            jobs=jobs or budget_bench.JOBS,
        ),
    }
    store = RecordStore(records / name / "records")
    with tempfile.TemporaryDirectory(prefix="arpo-bench-") as folder:
        benches = chosen(makers[name](Path(folder), is_quick=is_quick), arms)
        return report(name, benches, on_progress=on_progress, store=store)


def chosen(benches: Sequence[Bench], arms: Sequence[str]) -> Sequence[Bench]:
    """The parts with these arms alone; none named is all. Raises `ConfigError` for an arm that no part has."""
    if not arms:
        return benches
    known = [arm for bench in benches for arm in bench.arms]
    if strange := [arm for arm in arms if arm not in known]:
        raise ConfigError(f"no arm {strange[0]!r}: {', '.join(known)}")
    found: list[Bench] = []
    for bench in benches:
        runs = {arm: run for arm, run in bench.arms.items() if arm in arms}
        if runs:
            figures = bench.figures if len(runs) == len(bench.arms) else partial(_of_some, bench.figures)
            found.append(replace(bench, arms=runs, figures=figures))
    return found


def _of_some(figures: Callable[[Records], dict[str, float]], records: Records) -> dict[str, float]:
    """Figures compare arms: where one is missing that they speak of, there are none."""
    try:
        return figures(records)
    except KeyError:
        return {}


def report(
    name: str, benches: Sequence[Bench], *, on_progress: Callable[[str], None], store: RecordStore | None = None
) -> BenchReport:
    """Run the parts in turn and put them together."""
    started_s = time.monotonic()
    figures: dict[str, float] = {}
    arms: dict[str, ArmReport] = {}
    skipped: dict[str, str] = {}
    timelines: dict[str, list[Timeline]] = {}
    for bench in benches:
        for arm, reason in bench.skipped.items():
            on_progress(f"{bench.name}  {arm}: skipped, {reason}")
        skipped |= bench.skipped
        records = measure(bench, on_progress=on_progress, store=store)
        figures |= bench.figures(records)
        arms |= {arm: arm_report(found) for arm, found in records.items()}
        timelines |= bench.timelines
    return BenchReport(
        bench=name,
        machine=this_machine(),
        figures=figures,
        arms=arms,
        wall_s=time.monotonic() - started_s,
        skipped=skipped,
        timelines=timelines,
    )


def this_machine() -> Machine:
    """The machine this process runs on, without its name."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        torch=version("torch"),
        omp_threads=os.environ.get("OMP_NUM_THREADS", ""),
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()

"""What the control plane itself costs: whole runs under virtual time, whose CPU seconds are real.

Everything is the engine's own but the neighbours: policy and tools wait by the workload's law, the learner is scripted.
Every event is encoded, checksummed, written and folded, as in a run. The CPU time of the scripted policy, which a run
has in other processes, is measured by itself and subtracted; that of the tools is in the figures.
"""

import asyncio
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from actors.bench.bench import Record
from actors.bench.simulated_training import WorkloadPrompts, no_credit
from actors.bench.simulation import ROLLOUT
from actors.bench.workload import Law, Workload
from actors.collector import rarely
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.controller import Controller
from engine.events import AnyEvent, Forked, StepFinished, TokensSampled
from engine.faults import ScriptedTrainer
from engine.inference.router import Router
from engine.interfaces import Generator
from engine.journal import Journal
from engine.metrics import MetricsFold
from engine.phases import PhaseFold
from engine.rollout import TreeRollout
from engine.run_state import RunState
from engine.snapshot import SnapshotFold
from engine.train_config import TrainConfig
from engine.tree import TreeBuilder
from engine.types import GenerateRequest, TrajectoryGroup


class Book:
    """All that a run does with an event, but for telling a person."""

    def __init__(self, folder: Path, *, on_step: Callable[[int], None] = lambda num_steps: None) -> None:
        """`on_step` hears how many steps there have been, behind each."""
        self._journal = Journal(folder)
        self._on_step = on_step
        self._folds = (PhaseFold(), SnapshotFold())
        self._metrics = MetricsFold()
        self.num_segments = self.num_forks = self.num_events = 0
        self.staleness: list[int] = []

    def __call__(self, event: AnyEvent) -> None:
        self._journal.append(event)
        for fold in self._folds:
            fold.apply(event)
        row = self._metrics.apply(event)
        self.num_events += 1
        match event:
            case TokensSampled():
                self.num_segments += event.finish_reason != ""
            case Forked():
                self.num_forks += 1
            case StepFinished() if row is not None:
                self.staleness.append(row.staleness)
                self._on_step(len(self.staleness))
            case _:
                pass

    def close(self) -> None:
        self._journal.close()


def control(
    law: Law,
    *,
    num_generators: int,
    num_batches: int,
    folder: Path,
    seed: int,
    max_staleness: int = 1,
    step_s: float = 4.0,
    publish_s: float = 0.2,
    told_as: str = "",
) -> Record:
    """A run over all prompts of the law. `num_slots` of the law is for each generator. One that takes long says how far
    it is, a line a step on stderr, under the name `told_as`."""
    begun_s = time.monotonic()

    def tell(num_steps: int) -> None:
        if told_as:
            spent_s = time.monotonic() - begun_s
            sys.stderr.write(f"{told_as}: step {num_steps} of {num_batches}, {spent_s:.0f} s\n")

    workload = Workload(law, seed=seed, folder=folder)
    book = Book(folder / f"journal-{time.monotonic_ns()}", on_step=tell)
    train = TrainConfig(
        batch_size=law.num_prompts // num_batches, max_staleness=max_staleness, checkpoint_every=law.num_prompts
    )
    generators = [workload.generator() for _ in range(num_generators)]
    trainer = ScriptedTrainer(step_s=step_s, publish_s=publish_s)
    started_s = time.process_time()
    with rarely():
        makespan_s, sampled = run_virtual(run(workload, generators, train=train, book=book, trainer=trainer))
    all_s = time.process_time() - started_s
    book.close()
    requests = [request for generator in generators for request in generator.requests]
    cpu_s = all_s - policy_s(workload, requests)
    return {
        "makespan_s": makespan_s,
        "slots_busy": sampled * law.token_s / (law.num_slots * num_generators) / makespan_s,
        "cpu_s": cpu_s,
        "policy_s": all_s - cpu_s,
        "us_per_segment": 1e6 * cpu_s / book.num_segments,
        "segments": float(book.num_segments),
        "events": float(book.num_events),
        "forks": float(book.num_forks),
        "staleness": sum(book.staleness) / max(len(book.staleness), 1),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


async def run(
    workload: Workload,
    generators: Sequence[Generator],
    *,
    train: TrainConfig,
    book: Book,
    trainer: ScriptedTrainer,
) -> tuple[float, int]:
    """Seconds on the loop's clock, and tokens sampled."""
    router, tools = Router(generators), workload.tools()
    renderer = workload.renderer(tools)

    async def grow(tree: TreeBuilder, cohort: Cohort) -> TrajectoryGroup:
        rollout = TreeRollout(
            tree,
            config=ROLLOUT,
            seed=workload.seed,
            cohort=cohort,
            generator=router,
            tools=tools,
            renderer=renderer,
            vocab_size=workload.vocab_size,
            emit=book,
        )
        try:
            return await rollout.run()
        finally:
            router.forget(tree.prompt.prompt_id)

    loop = asyncio.get_running_loop()
    started_s = loop.time()
    controller = Controller(
        config=train,
        rollout_config=ROLLOUT,
        state=RunState(),
        prompts=WorkloadPrompts(workload),
        rollout=grow,
        credit=no_credit,
        generators=generators,
        trainer=trainer,
        checkpoint_path=str,
        emit=book,
    )
    await controller.run()
    sampled = sum([(await generator.statistics()).num_sampled_tokens for generator in generators])
    return loop.time() - started_s, sampled


def policy_s(workload: Workload, requests: Sequence[GenerateRequest]) -> float:
    """CPU seconds of the scripted policy alone, which a run has elsewhere."""
    generator = workload.generator()

    async def ask(request: GenerateRequest) -> None:
        async for _ in generator.generate(request):
            pass

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                tasks.create_task(ask(request))

    started_s = time.process_time()
    with rarely():
        run_virtual(main())
    return time.process_time() - started_s

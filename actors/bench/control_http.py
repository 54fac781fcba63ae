"""What the control plane costs with SGLang's HTTP interface between it and its generators: on the clock of the wall.

As in `control`, but the policy is a process of its own (`sglang_stand_in`), so that nothing need be subtracted.
"""

import asyncio
import time
from pathlib import Path

import msgspec

from actors.bench.bench import Record
from actors.bench.control import Book, run
from actors.bench.sglang_stand_in import stand_in, write_model
from actors.bench.workload import Law, Workload
from actors.collector import rarely
from engine.faults import ScriptedTrainer
from engine.inference.sglang import SglangGenerator
from engine.inference.sglang_config import SglangConfig
from engine.train_config import TrainConfig

FASTER = 10
"""Tokens and tools take so much less time than the law says: here it is spent."""


def over_http(law: Law, *, num_batches: int, folder: Path, seed: int) -> Record:
    """A run over all prompts of the law with one server, of any number of slots."""
    names = ("token_s", "latency_median_s", "latency_max_s")
    law = msgspec.structs.replace(law, **{name: getattr(law, name) / FASTER for name in names})
    workload = Workload(law, seed=seed, folder=folder)
    book = Book(folder / f"journal-{time.monotonic_ns()}")
    train = TrainConfig(batch_size=law.num_prompts // num_batches, checkpoint_every=law.num_prompts)
    model = write_model(folder / "served", vocab_size=workload.vocab_size)

    async def main(url: str) -> tuple[float, float]:
        """Seconds of the wall and of the CPU."""
        async with SglangGenerator(url, SglangConfig(), model_path=model) as generator:
            started_s = time.process_time()
            trainer = ScriptedTrainer(step_s=0.1, publish_s=0.0)
            makespan_s, _ = await run(workload, [generator], train=train, book=book, trainer=trainer)
            return makespan_s, time.process_time() - started_s

    with stand_in(law, seed=seed, folder=folder) as url, rarely():
        makespan_s, cpu_s = asyncio.run(main(url))
    book.close()
    return {
        "makespan_s": makespan_s,
        "cpu_s": cpu_s,
        "us_per_segment": 1e6 * cpu_s / book.num_segments,
        "segments": float(book.num_segments),
        "events": float(book.num_events),
    }

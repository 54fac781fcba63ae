"""Fault seams: a trainer that learns nothing, and a generator wrapper that stalls or fails on command.

Shipped, as `inference.scripted` and `tools.faults` are, so that users test their own loops as we test ours.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from engine.errors import DataError, GeneratorError, GeneratorLostError, LearnerError, RequestRefusedError
from engine.interfaces import Generator
from engine.reports import GeneratorStatistics, StepReport
from engine.types import Batch, Completion, GenerateRequest, UpdateMode, Version, WeightRef


class ScriptedTrainer:
    """The fake of the `Trainer` seam: takes its time, counts versions, remembers its batches; may fail or stall."""

    def __init__(
        self, *, step_s: float = 0.0, publish_s: float = 0.0, fails_at: int | None = None, stalls_at: int | None = None
    ) -> None:
        """`fails_at` raises `LearnerError` at that step; `stalls_at` never answers it."""
        self._step_s = step_s
        self._publish_s = publish_s
        self._fails_at = fails_at
        self._stalls_at = stalls_at
        self.version: Version = 0
        self.batches: list[Batch] = []
        self.saved: dict[str, Version] = {}
        self.torn: set[str] = set()
        """Checkpoints that are refused until they are saved again."""

    async def step(self, batch: Batch) -> StepReport:
        await asyncio.sleep(self._step_s)
        if batch.step == self._fails_at:
            raise LearnerError(f"step {batch.step}: scripted failure")
        if batch.step == self._stalls_at:
            await asyncio.Event().wait()
        self.batches.append(batch)
        self.version += 1
        return StepReport(
            step=batch.step,
            version=self.version,
            loss=0.0,
            grad_norm=0.0,
            learning_rate=0.0,
            num_trained_tokens=0,
            num_computed_tokens=0,
            entropy=0.0,
            kl_rollout=0.0,
            ratio_max=1.0,
            clip_fraction=0.0,
            duration_s=self._step_s,
        )

    async def publish(self) -> WeightRef:
        await asyncio.sleep(self._publish_s)
        return WeightRef(version=self.version, path="")

    async def save(self, path: str) -> None:
        self.saved[path] = self.version
        self.torn.discard(path)

    async def load(self, path: str) -> Version:
        if path not in self.saved or path in self.torn:
            raise DataError(f"{path}: no checkpoint, or a torn one")
        self.version = self.saved[path]
        return self.version


class FaultyGenerator:
    """A generator whose requests fail, are refused, stall or find nobody there when `plan` says so: `fail`, `refuse`,
    `stall`, `lose`, or `` for none of them. Once `is_lost` is set nobody answers anything."""

    def __init__(self, inner: Generator, plan: Callable[[GenerateRequest], str]) -> None:
        self._inner = inner
        self._plan = plan
        self.is_lost = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        self._answer()
        match self._plan(request):
            case "lose":
                raise GeneratorLostError(f"scripted loss at {request.request_id}")
            case "refuse":
                raise RequestRefusedError(f"scripted refusal of {request.request_id}")
            case "fail":
                raise GeneratorError(f"scripted failure of {request.request_id}")
            case "stall":
                await asyncio.Event().wait()
            case _:
                async with contextlib.aclosing(self._inner.generate(request)) as chunks:
                    async for chunk in chunks:
                        self._answer()
                        yield chunk

    async def abort(self, request_id: str) -> None:
        self._answer()
        await self._inner.abort(request_id)

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        self._answer()
        await self._inner.update_weights(ref, mode=mode)

    async def statistics(self) -> GeneratorStatistics:
        self._answer()
        return await self._inner.statistics()

    def _answer(self) -> None:
        if self.is_lost:
            raise GeneratorLostError("a scripted loss: nobody answers")

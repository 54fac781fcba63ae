"""The updates of one step: mini-batches, what has to be known before them, gradients, and all of it or nothing."""

import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import LearnerError
from engine.reports import Mismatch, StepReport
from engine.types import Batch, Int32
from learner.algorithms.correction import MAX_LOG_RATIO, m2po_of, needs_proximal
from learner.algorithms.gate import judge
from learner.algorithms.m2po import m2po_keep
from learner.config import LearnerConfig, SequenceK3
from learner.forward import RowRunner
from learner.objective import Before
from learner.optimizer import PolicyOptimizer
from learner.packing.batcher import plan, split_minibatches
from learner.packing.flatten import FlatSequence, flatten
from learner.packing.rows import Row
from learner.parallel import Parallel
from learner.statistics import RowStatistics, versions_of


class Training:
    """Steps of the policy that `module` holds on this rank; every rank calls the same methods."""

    def __init__(
        self,
        module: nn.Module,
        *,
        optimizer: PolicyOptimizer,
        runner: RowRunner,
        reference: RowRunner | None,
        config: LearnerConfig,
        parallel: Parallel,
    ) -> None:
        """`reference` computes the reference policy's log-probabilities; needed where `config.kl` is."""
        self._module = module
        self._optimizer = optimizer
        self._runner = runner
        self._reference = reference
        self._config = config
        self._parallel = parallel

    def step(self, batch: Batch, *, version: int, learning_rate: float) -> StepReport:
        """Train on one batch: `num_minibatches` updates, which make `version`.

        The report's loss and norm are means over the updates, its other figures means over all trained tokens. Several
        updates keep a copy of the state until the last one, to be able to undo. Raises `LearnerError`, naming the step,
        for a batch it cannot train on and where the loss or the gradient is not finite; then nothing was applied.
        """
        started_s = time.monotonic()
        sequences = flatten(batch)
        minibatches = [self._plan(own) for own in split_minibatches(sequences, self._config.num_minibatches)]
        if not minibatches:
            raise LearnerError(f"step {batch.step}: the batch holds no trained token")
        versions = versions_of(sequences)
        # all of them before the first update: proximal means at the start of the step
        known = [self._before(rows, is_only=len(minibatches) == 1) for rows, _ in minibatches]
        undo = copy.deepcopy(self._state()) if len(minibatches) > 1 else None
        totals = RowStatistics.nothing(len(versions), self._parallel.device)
        norms: list[float] = []
        mismatches: set[Mismatch] = set()
        try:
            for (rows, _), before in zip(minibatches, known, strict=True):
                statistics, norm, mismatch = self._prepared(batch.step, rows, before, versions)
                self._optimizer.apply(learning_rate=learning_rate, grad_norm=norm)
                totals = totals + statistics
                norms.append(norm)
                mismatches.add(mismatch)
        except LearnerError:
            if undo is not None and norms:
                self._restore(undo)
            raise
        return StepReport(
            step=batch.step,
            version=version,
            loss=totals.loss / len(minibatches),
            grad_norm=sum(norms) / len(norms),
            learning_rate=learning_rate,
            num_trained_tokens=sum(s.num_trained for s in sequences),
            num_computed_tokens=sum(count for _, count in minibatches),
            num_path_tokens=sum(len(s.token_ids) for s in sequences),
            duration_s=time.monotonic() - started_s,
            mismatch=next((m for m in mismatches if m != "none"), "none"),
            by_version=totals.by_version(versions),
            **totals.means(),
        )

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of a batch's loss, as of one update, by the names of this rank's parameters; nothing is applied."""
        sequences = flatten(batch)
        rows, _ = self._plan(sequences)
        self._gradients(self._config, rows, self._before(rows, is_only=True), versions_of(sequences))
        return {name: p.main_grad.clone() for name, p in self._module.named_parameters()}

    def _plan(self, sequences: Sequence[FlatSequence]) -> tuple[list[Row], int]:
        """This replica's rows, and the tokens of all replicas' rows."""
        return plan(sequences, self._config, replica=self._parallel.dp_rank, num_replicas=self._parallel.dp_size)

    def _before(self, rows: list[Row], *, is_only: bool) -> list[Before]:
        """What each row's objective asks for. The first and only update reads the proximal policy off its own pass."""
        config = self._config
        m2po = None if config.is_supervised else m2po_of(config.rejections)
        needs_pass = not config.is_supervised and needs_proximal(config.correction, config.rejections)
        nothing: list[None] = [None] * len(rows)
        proximal = reference = keep = nothing
        if needs_pass and (m2po is not None or not is_only):
            proximal = self._scored(self._runner, rows)
        if self._reference is not None and config.kl is not None:
            reference = self._scored(self._reference, rows)
        if m2po is not None and self._parallel.is_last_stage:
            keep = self._kept(rows, proximal, tau=m2po.tau)
        return [Before(*known) for known in zip(proximal, reference, keep, strict=True)]

    def _scored(self, runner: RowRunner, rows: list[Row]) -> Sequence[Tensor | None]:
        """[N] log-probabilities of each row; None on stages before the last, which have no objective."""
        scored = runner.logprobs(rows, temperature=self._config.temperature)
        return scored if self._parallel.is_last_stage else [None] * len(rows)

    def _kept(self, rows: list[Row], proximal: Sequence[Tensor | None], *, tau: float) -> list[Tensor]:
        """[E] of each row, true for what M2PO keeps of all replicas' rows together."""
        own = [
            np.clip(before_N.cpu().numpy()[row.tokens] - row.behaviour, -MAX_LOG_RATIO, MAX_LOG_RATIO)
            for row, before_N in zip(rows, proximal, strict=True)
            if before_N is not None
        ]
        replicas = self._parallel.gather_replicas(np.concatenate(own))
        start = sum(len(r) for r in replicas[: self._parallel.dp_rank])
        keep = torch.from_numpy(m2po_keep(np.concatenate(replicas), tau=tau)).to(self._parallel.device)
        counts = [len(values) for values in own]
        return list(keep[start : start + sum(counts)].split(counts))

    def _prepared(
        self, step: int, rows: list[Row], before: list[Before], versions: Int32
    ) -> tuple[RowStatistics, float, Mismatch]:
        """The gradients of an update that may be applied. Raises `LearnerError`, equally on all ranks, for others."""
        config, mismatch = self._config, "none"
        statistics, norm = self._gradients(config, rows, before, versions)
        if not config.is_supervised:
            speaks = self._parallel.rank == 0
            mismatch = judge(config.gate, kl_rollout=statistics.kl_rollout, step=step, speaks=speaks)
        if mismatch == "masked":
            rejections = (*config.rejections, SequenceK3(limit=config.gate.kl_limit))
            masking = msgspec.structs.replace(config, rejections=rejections)
            statistics, norm = self._gradients(masking, rows, before, versions)
        if not (math.isfinite(statistics.loss) and math.isfinite(norm)):
            raise LearnerError(f"step {step}: loss={statistics.loss}, gradient norm={norm}; nothing was applied")
        return statistics, norm, mismatch

    def _gradients(
        self, config: LearnerConfig, rows: list[Row], before: list[Before], versions: Int32
    ) -> tuple[RowStatistics, float]:
        """Gradients of one mini-batch, its statistics over all ranks, and the global norm."""
        self._optimizer.zero_grad()
        own = self._runner.train(rows, before, config=config, versions=versions)
        statistics = RowStatistics(
            sums=self._parallel.total(own.sums),
            max_log_ratio=self._parallel.total(own.max_log_ratio, maximum=True),
        )
        return statistics, self._optimizer.prepare()

    def _state(self) -> dict[str, Any]:
        """This rank's parameters and optimiser: the living tensors, not copies."""
        parameters = {name: p.detach() for name, p in self._module.named_parameters()}
        return {"parameters": parameters, "optimizer": self._optimizer.state()}

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        for name, parameter in self._module.named_parameters():
            parameter.copy_(state["parameters"][name])
        self._optimizer.restore(state["optimizer"])

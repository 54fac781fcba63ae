"""Rows through the model: Megatron's schedules, with or without a pipeline, with or without gradients."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.inference.shape import ModelShape, inverse_frequencies
from engine.types import Int32
from learner.config import LearnerConfig
from learner.mcore import get_forward_backward_func
from learner.network.attention import Layout
from learner.network.logprobs import token_logprobs
from learner.network.model import DTYPES
from learner.objective import Before, row_objective
from learner.packing.rows import Row, padded
from learner.parallel import Parallel
from learner.statistics import RowStatistics


class _RowOutput(Protocol):
    """What to make of a row's logits [N, V / TP] on the last stage: (scalar to minimise, something to keep)."""

    def __call__(self, index: int, row: Row, logits: Tensor) -> tuple[Tensor, Any]: ...


class RowRunner:
    """Runs rows through the (data-parallel wrapped) model of this rank."""

    def __init__(self, model: nn.Module, *, shape: ModelShape, config: LearnerConfig, parallel: Parallel) -> None:
        self._model = model
        self._shape = shape
        self._config = config
        self._parallel = parallel
        self._frequencies = torch.from_numpy(inverse_frequencies(shape)).to(parallel.device)

    def fitted(self, rows: Sequence[Row]) -> list[Row]:
        """The rows at the lengths this layout needs: fixed, equal along a pipeline, divisible for sequence shards."""
        multiple = self._config.tensor_parallel if self._config.sequence_parallel else 1
        longest = max(len(r.token_ids) for r in rows)
        fixed = self._config.micro_batch_tokens if self._config.fixed_shapes else 0

        def target(row: Row) -> int:
            length = longest if self._parallel.pp_size > 1 else len(row.token_ids)
            return -(-max(length, fixed) // multiple) * multiple

        return [padded(row, target(row)) for row in rows]

    def train(
        self, rows: Sequence[Row], before: Sequence[Before], *, config: LearnerConfig, versions: Int32
    ) -> RowStatistics:
        """Forward and backward over all rows; gradients are reduced over replicas, ready for the optimiser.

        `config` has the objective; `versions` are all that sampled tokens of the batch, ascending.
        Returns this rank's sums: nothing on ranks that do not speak for a last stage, so that they add up over ranks.
        """

        def objective(index: int, row: Row, logits: Tensor) -> tuple[Tensor, RowStatistics]:
            logprobs_N, entropies_N = self._score(row, logits)
            return row_objective(
                config,
                row,
                before[index],
                logprobs_N=logprobs_N,
                entropies_N=entropies_N,
                versions=versions,
            )

        kept = self._run(rows, objective, has_gradients=True)
        total = RowStatistics.nothing(len(versions), self._parallel.device)
        if self._parallel.is_last_stage and self._parallel.tp_rank == 0:
            for statistics in kept:
                total = total + statistics
        return total

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row], *, temperature: float) -> list[Tensor]:
        """Log-probabilities [N] of each row's scored tokens; empty on stages before the last."""

        def scored(index: int, row: Row, logits: Tensor) -> tuple[Tensor, Tensor]:
            logprobs_N, _ = self._score(row, logits, temperature=temperature)
            return logprobs_N.new_zeros(()), logprobs_N

        return self._run(rows, scored, has_gradients=False)

    def _score(self, row: Row, logits: Tensor, *, temperature: float | None = None) -> tuple[Tensor, Tensor]:
        return token_logprobs(
            logits,
            torch.from_numpy(row.targets).long().to(logits.device),
            vocab_size=self._shape.vocab_size,
            temperature=self._config.temperature if temperature is None else temperature,
            group=self._parallel.tp_group,
        )

    def _run(self, rows: Sequence[Row], output: _RowOutput, *, has_gradients: bool) -> list[Any]:
        rows = self.fitted(rows)
        num_tokens = torch.zeros((), dtype=torch.int, device=self._parallel.device)

        def loss_func(index: int, row: Row, logits: Tensor) -> tuple[Tensor, Tensor, Any]:
            loss, kept = output(index, row, logits)
            return loss, num_tokens, kept

        def forward_step(rows_left: Iterator[tuple[int, Row]], model: nn.Module) -> tuple[Tensor, Any]:
            index, row = next(rows_left)
            predictors = torch.from_numpy(row.predictors).long().to(self._parallel.device)
            layout = Layout.of(
                row.structure,
                predictors=predictors,
                inverse_frequencies=self._frequencies,
                kind=self._config.attention,
                dtype=DTYPES[self._config.dtype],
            )
            token_ids = torch.from_numpy(row.token_ids).long().to(self._parallel.device)
            logits = model(
                input_ids=token_ids[None],
                position_ids=None,
                attention_mask=None,
                packed_seq_params=layout,
            )
            return logits, partial(loss_func, index, row)

        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(enumerate(rows)),
            model=[self._model],
            num_microbatches=len(rows),
            seq_length=max(len(r.token_ids) for r in rows),
            micro_batch_size=1,
            forward_only=not has_gradients,
        )

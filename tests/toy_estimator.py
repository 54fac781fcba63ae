"""Trees of the toy policy, grown by the engine under a virtual clock, and their gradients by the learner's functions.

Axes: S batches, G logits of the table.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from engine.branching import AnyBranching, Arpo
from engine.budget import Account
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.granting import AnyGranting, Paper
from engine.rollout import TreeRollout
from engine.rollout_config import BudgetConfig, RolloutConfig, SamplingConfig
from engine.tree import TreeBuilder
from engine.types import Batch, Float64, Prompt, Sample, TrajectoryGroup, WeightRef
from learner.algorithms.advantage import estimate
from learner.algorithms.advantage_config import PlainReward
from learner.config import ConstantLength, CorrectionConfig, ExactIs, LeafWeighting, LearnerConfig, Reinforce
from learner.objective import Before, row_objective
from learner.packing.batcher import plan
from learner.packing.flatten import flatten
from learner.packing.rows import Row
from learner.statistics import versions_of
from tests.toy_policy import MAX_TURNS, NUM_SAMPLED, OLDER, PROMPT, TABLE, State
from tests.toy_world import ToyGenerator, ToyRenderer, toy_tools

UPDATE_S = 4.5
"""When new weights arrive, in the middle of trees."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to grow trees and to weigh them."""

    branching: AnyBranching = field(default_factory=lambda: Arpo(initial=4, probe_tokens=2))
    granting: AnyGranting = field(default_factory=Paper)
    size: int = 8
    cohort: int = 8
    """Trees that share one."""
    is_logical: bool = False
    leaves_per_cohort: int | None = None
    correction: CorrectionConfig = field(default_factory=ExactIs)
    leaf_weighting: LeafWeighting = "inverse_branching"
    is_scaled: bool = False
    """Scale the weights to one sum for every group, as the learner does not."""
    tables: tuple[Float64, ...] = tuple(OLDER)
    """By version; the second one arrives after `UPDATE_S`."""

    @property
    def rollout(self) -> RolloutConfig:
        return RolloutConfig(
            size=self.size,
            branching=self.branching,
            granting=self.granting,
            sampling=SamplingConfig(max_turns=MAX_TURNS),
            budget=BudgetConfig(leaves_per_cohort=self.leaves_per_cohort),
        )

    @property
    def learner(self) -> LearnerConfig:
        return LearnerConfig(
            dtype="float64",
            loss=Reinforce(),
            correction=self.correction,
            normalisation=ConstantLength(length=1),
            leaf_weighting=self.leaf_weighting,
            micro_batch_tokens=1_000_000,
        )


async def grow(arm: Arm, *, seed: int) -> list[TrajectoryGroup]:
    """The trees of one cohort."""
    config = arm.rollout
    cohort = Cohort(
        0,
        size=arm.cohort,
        granting=config.granting,
        leaves=Account("leaves", limit=config.budget.leaves_per_cohort),
        tool_calls=Account("calls"),
        is_logical=arm.is_logical,
    )
    generator, tools, renderer = ToyGenerator(arm.tables), toy_tools(), ToyRenderer()

    async def tree(number: int) -> TrajectoryGroup:
        prompt = Prompt(
            prompt_id=f"e0-r{number}",
            epoch=0,
            row=number,
            token_ids=np.array([PROMPT], np.int32),
            question="",
            ground_truth="",
        )
        rollout = TreeRollout(
            TreeBuilder(prompt),
            config=config,
            seed=seed,
            cohort=cohort,
            generator=generator,
            tools=tools,
            renderer=renderer,
            vocab_size=NUM_SAMPLED,
            emit=lambda event: None,
        )
        return await rollout.run()

    async with asyncio.TaskGroup() as tasks:
        grown = [tasks.create_task(tree(number), name=f"tree{number}") for number in range(arm.cohort)]
        if len(arm.tables) > 1:
            await asyncio.sleep(UPDATE_S)
            await generator.update_weights(WeightRef(version=1, path=""), mode="retract")
    return [task.result() for task in grown]


def sample_of(group: TrajectoryGroup) -> Sample:
    """With its rewards as credit: no group statistics."""
    sample = estimate(group, PlainReward())
    assert sample is not None
    return sample


def gradient(arm: Arm, groups: Sequence[TrajectoryGroup]) -> Float64:
    """[G] what the learner makes of a batch: its estimate of the expected reward's gradient."""
    batch = Batch(step=0, samples=tuple(sample_of(group) for group in groups))
    sequences = flatten(batch)
    if arm.is_scaled:
        sums = [sum(s.leaf_weight for s in sequences if s.sample == index) for index in range(len(groups))]
        sequences = [replace(s, leaf_weight=s.leaf_weight / sums[s.sample]) for s in sequences]
    table = torch.tensor(TABLE, requires_grad=True)
    total = table.new_zeros(())
    for row in plan(sequences, arm.learner, replica=0, num_replicas=1).rows:
        logprobs_N, entropies_N = _scored(table, row)
        loss, _ = row_objective(
            arm.learner,
            row,
            Before(),
            logprobs_N=logprobs_N,
            entropies_N=entropies_N,
            versions=versions_of(sequences),
        )
        total = total - loss
    (found,) = torch.autograd.grad(total, table)
    return found.numpy().ravel()


def _scored(table: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    """[N] log-probabilities and entropies of the scored tokens, each from the state its path is in."""
    rows = np.array([state.row for state in _states(row)])
    logprobs_NV = table[torch.from_numpy(rows[row.predictors])].log_softmax(-1)
    targets_N = torch.from_numpy(row.targets).long()
    return logprobs_NV.gather(1, targets_N[:, None])[:, 0], -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def _states(row: Row) -> Iterator[State]:
    """The state behind each token of a row, which stands depth first."""
    ancestors: list[tuple[int, State]] = []
    for index, (token, end) in enumerate(zip(row.token_ids.tolist(), row.structure.ends.tolist(), strict=True)):
        while ancestors and ancestors[-1][0] <= index:
            ancestors.pop()
        state = (ancestors[-1][1] if ancestors else State()).then(token)
        ancestors.append((end, state))
        yield state


class Bias:
    """What the mean of many estimates is off by."""

    def __init__(self, estimates_SG: Float64, true_G: Float64) -> None:
        self._off_SG = estimates_SG - true_G
        self._true_norm = float(np.linalg.norm(true_G))

    @property
    def z_scores(self) -> Float64:
        """[G] for each logit, the deviation of the mean in standard errors."""
        return _mean(self._off_SG) / _error(self._off_SG)

    def z_along(self, direction_G: Float64) -> float:
        """The same along a direction."""
        off_S = self._off_SG @ direction_G
        return float(_mean(off_S) / _error(off_S))

    @property
    def relative(self) -> float:
        """Norm of the bias in terms of the true gradient's, after its noise was taken from its square."""
        square = (_mean(self._off_SG) ** 2 - _error(self._off_SG) ** 2).sum()
        return float(np.sqrt(max(square, 0.0))) / self._true_norm

    @property
    def resolution(self) -> float:
        """Norm of the standard errors in the same terms: smaller biases are not seen."""
        return float(np.linalg.norm(_error(self._off_SG))) / self._true_norm


def _mean(values_S: Float64) -> Float64:
    return values_S.mean(0)


def _error(values_S: Float64) -> Float64:
    return values_S.std(0, ddof=1) / np.sqrt(len(values_S))


def estimates(arm: Arm, *, num_trajectories: int, batch: int = 32) -> Float64:
    """[S, G] one for each batch of so many trees, from cohorts that share nothing."""
    found: list[Float64] = []

    async def estimate_all() -> None:
        seeds = count()
        for _ in range(num_trajectories // arm.size // batch):
            cohorts = [await grow(arm, seed=next(seeds)) for _ in range(batch // arm.cohort)]
            found.append(gradient(arm, [group for cohort in cohorts for group in cohort]))

    run_virtual(estimate_all())
    return np.array(found)

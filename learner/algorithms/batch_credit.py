"""Credit that depends on the whole batch: whitening, and what a token's entropy means among all others.

Plain numpy. Statistics are flat: a token that trajectories share counts once for each of them, as it does in the loss.
Axes: T tokens of a path, N trained tokens of the batch, trajectory by trajectory.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.types import Float32, NodeKind, RolloutStatus, Sample
from learner.algorithms.advantage import Float64, z_scores
from learner.algorithms.advantage_config import AdvantageConfig, Aepo, ReinforcePp, ReinforcePpBaseline

Bool = NDArray[np.bool_]


def finish_batch(samples: Sequence[Sample], config: AdvantageConfig) -> tuple[Sample, ...]:
    """The samples of one step, as `estimate` gave them, with what the estimator takes from the batch as a whole.

    The samples themselves where it takes nothing. Groups, shapes and zeros (tokens nobody sampled, failed
    trajectories) stay as they are.
    """
    match config:
        case ReinforcePp() | ReinforcePpBaseline():
            return _changed(samples, lambda advantages_N, entropies_N: whitened(advantages_N, eps=config.eps))
        case Aepo():
            return _changed(samples, lambda advantages_N, entropies_N: by_entropy(advantages_N, entropies_N, config))
        case _:
            return tuple(samples)


def whitened(advantages_N: Float64, *, eps: float) -> Float64:
    """REINFORCE++ (2501.03262): A_t = (A_t - mean A) / (std A + eps) over the tokens of the batch.

    Two tokens with A = 1 and one with A = 0 become 0.577, 0.577, -1.155.
    """
    return z_scores(advantages_N, eps=eps)


def by_entropy(advantages_N: Float64, entropies_N: Float64, config: Aepo) -> Float64:
    """AEPO (2510.14545): A_t = A_acc (1 + a (H_t - mean H) / (std H + eps)), H the entropy the token was sampled with.

    H is what the rollout recorded, so no gradient can reach it. Entropies 1, 2, 3 and A = 1 with a = 0.2 give 0.8, 1,
    1.2. A token more than 1 / a deviations below the mean would change its sign; entropies are not that skewed.
    """
    return advantages_N * (1.0 + config.entropy_weight * z_scores(entropies_N, eps=config.eps))


def _changed(samples: Sequence[Sample], change: Callable[[Float64, Float64], Float64]) -> tuple[Sample, ...]:
    """Apply (advantages [N], entropies [N]) -> advantages [N] to all trained tokens of the batch at once."""
    parts = [_Part(sample, place) for sample in samples for place in range(len(sample.advantages))]
    if not sum(part.num_trained for part in parts):
        return tuple(samples)
    found_N = change(
        np.concatenate([part.advantages for part in parts]), np.concatenate([part.entropies for part in parts])
    )
    pieces = iter(np.split(found_N, np.cumsum([part.num_trained for part in parts])[:-1]))
    filled = iter([part.filled(piece) for part, piece in zip(parts, pieces, strict=True)])
    return tuple(msgspec.structs.replace(s, advantages=tuple(next(filled) for _ in s.advantages)) for s in samples)


class _Part:
    """The trained tokens of one trajectory."""

    def __init__(self, sample: Sample, place: int) -> None:
        trajectory, tree = sample.group.trajectories[place], sample.group.tree
        nodes = [tree.nodes[i] for i in tree.path_to(trajectory.leaf)]
        is_alive = trajectory.status is not RolloutStatus.FAILED
        trained = [node for node in nodes if node.kind is NodeKind.SAMPLED] if is_alive else []
        self._is_trained_T: Bool = np.concatenate(
            [np.full(len(n.token_ids), is_alive and n.kind is NodeKind.SAMPLED) for n in nodes]
        )
        self._advantages_T = sample.advantages[place]
        self.advantages: Float64 = self._advantages_T[self._is_trained_T].astype(np.float64)
        self.entropies: Float64 = np.concatenate([np.zeros(0), *(n.entropies for n in trained)])

    @property
    def num_trained(self) -> int:
        return len(self.advantages)

    def filled(self, values: Float64) -> Float32:
        """The path's advantages with new ones at its trained tokens."""
        found = self._advantages_T.copy()
        found[self._is_trained_T] = values
        return found

"""Groups of the shapes that rollouts leave behind, with random tokens: what `arpo bench learner` trains on.

A shape says how long a path is and where its branches leave it; the ratio of the tokens of all paths to those of the
tree follows. `toolworld` has the lengths and the ratio (1.5) that were measured over the groups of the demo.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engine.types import (
    Batch,
    Node,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    Sample,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
)

VOCAB_SIZE = 1024
"""Tokens are of these, whatever the model knows besides."""


class Growing:
    """A tree of random tokens, node by node."""

    def __init__(self, rng: np.random.Generator, *, prompt_tokens: int) -> None:
        self._rng = rng
        self._nodes: list[Node] = []
        self._leaves: list[int] = []
        self.root = self.add(-1, NodeKind.PROMPT, prompt_tokens)

    def add(self, parent: int, kind: NodeKind, length: int) -> int:
        num_sampled = length if kind is NodeKind.SAMPLED else 0
        node = Node(
            parent=parent,
            kind=kind,
            token_ids=self._rng.integers(0, VOCAB_SIZE, length).astype(np.int32),
            # near what a random model thinks of them, so that no ratio is out of bounds
            logprobs=(-np.log(VOCAB_SIZE) + self._rng.normal(0, 0.1, num_sampled)).astype(np.float32),
            versions=np.zeros(num_sampled, np.int32),
            entropies=np.zeros(num_sampled, np.float32),
        )
        self._nodes.append(node)
        return len(self._nodes) - 1

    def end(self, leaf: int) -> None:
        self._leaves.append(leaf)

    def sample(self, row: int) -> Sample:
        """The group, with one advantage a trajectory."""
        tree = TrajectoryTree(nodes=tuple(self._nodes))
        group = TrajectoryGroup(
            prompt=Prompt(
                prompt_id=f"e0-r{row}",
                epoch=0,
                row=row,
                token_ids=self._nodes[self.root].token_ids,
                question="",
                ground_truth="",
            ),
            tree=tree,
            trajectories=tuple(
                Trajectory(path=path, leaf=leaf, status=RolloutStatus.COMPLETED, reward=Reward(score=0.0))
                for path, leaf in enumerate(self._leaves)
            ),
        )
        return Sample(group=group, advantages=tuple(self._advantages(tree, leaf) for leaf in self._leaves))

    def _advantages(self, tree: TrajectoryTree, leaf: int) -> np.ndarray:
        nodes = [tree.nodes[i] for i in tree.path_to(leaf)]
        value = self._rng.normal()
        return np.concatenate(
            [np.full(len(n.token_ids), value if n.kind is NodeKind.SAMPLED else 0.0, np.float32) for n in nodes]
        )


def toolworld(tree: Growing, rng: np.random.Generator) -> None:
    """8 paths of three calls each and 8 branches behind their results: ARPO's M = 16, N = 8, paths of 146 tokens."""
    ends: list[list[int]] = []  # of each path, the node behind each result

    def grow(node: int, turns: int, seen: list[int]) -> None:
        for _ in range(turns):
            node = tree.add(tree.add(node, NodeKind.SAMPLED, 14), NodeKind.OBSERVED, 17)
            seen = [*seen, node]
        tree.end(tree.add(node, NodeKind.SAMPLED, 15))
        ends.append(seen)

    for _ in range(8):
        grow(tree.root, 3, [])
    for _ in range(8):
        seen = ends[rng.integers(len(ends))]
        at = int(rng.integers(1, len(seen) + 1))
        grow(seen[at - 1], 3 - at, seen[:at])


def even(tree: Growing, fan: Sequence[int], lengths: Sequence[int]) -> None:
    """A fork at every depth: `fan` (2, 2, 4) has 16 leaves."""
    tips = [tree.root]
    for branches, length in zip(fan, lengths, strict=True):
        tips = [tree.add(tip, NodeKind.SAMPLED, length) for tip in tips for _ in range(branches)]
    for tip in tips:
        tree.end(tip)


class Workload:
    """Batches of one shape."""

    def __init__(
        self, grow: Callable[[Growing, np.random.Generator], None], *, prompt_tokens: int, num_groups: int
    ) -> None:
        self._grow = grow
        self._prompt_tokens = prompt_tokens
        self._num_groups = num_groups

    def batch(self, seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        samples: list[Sample] = []
        for row in range(self._num_groups):
            tree = Growing(rng, prompt_tokens=self._prompt_tokens)
            self._grow(tree, rng)
            samples.append(tree.sample(row))
        return Batch(step=seed, samples=tuple(samples))


def workloads(*, is_quick: bool) -> Mapping[str, Workload]:
    """By name; `long` has leaves of 8,192 tokens and is left out of quick runs."""
    found = {
        "toolworld": Workload(toolworld, prompt_tokens=38, num_groups=6 if is_quick else 12),
        # 2,240 tokens in the tree, 6,656 on its paths
        "forked": Workload(
            lambda tree, rng: even(tree, (2, 2, 4), (96, 96, 96)), prompt_tokens=128, num_groups=1 if is_quick else 3
        ),
    }
    if not is_quick:
        # 16,384 tokens in the tree, 32,768 on its paths
        found["long"] = Workload(lambda tree, rng: even(tree, (2, 2), (2048, 2560)), prompt_tokens=3584, num_groups=1)
    return found

"""Lays out one rollout tree: nodes become blocks of text, with what the entropy monitor said where it spoke."""

from itertools import pairwise

import numpy as np

from actors.report.pieces import DecodeText, pieces_of
from actors.report.record import GrownTree
from actors.report.tree_view import Block, Leaf, Look, Part, Token, TreeView
from engine.events import ForkConsidered
from engine.types import Int32, NodeKind, Sample


def lay_out(tree: GrownTree, *, text: DecodeText, probe_tokens: int, sample: Sample | None) -> TreeView:
    """Lay out one tree. `sample` has its advantages, or is None where it holds no learning signal."""
    prompt = tree.group.prompt
    layout = _Layout(tree, text=text, probe_tokens=probe_tokens, sample=sample)
    return TreeView(
        prompt_id=prompt.prompt_id,
        question=prompt.question,
        ground_truth=prompt.ground_truth,
        prompt_text=text(prompt.token_ids),
        trained_in=tree.trained_in,
        version=tree.version,
        num_forks=tree.group.num_forks,
        length=max((path.length for path in tree.paths), default=0) - prompt.token_ids.size,
        roots=layout.blocks_behind(0),
    )


class _Layout:
    """Walks the nodes of one tree; a chain of nodes without a fork becomes one block."""

    def __init__(self, tree: GrownTree, *, text: DecodeText, probe_tokens: int, sample: Sample | None) -> None:
        self._tree = tree
        self._text = text
        self._probe_tokens = probe_tokens
        nodes = tree.group.tree.nodes
        self._paths: list[list[int]] = [[] for _ in nodes]
        """Paths through each node, by index."""
        self._starts = [0] * len(nodes)
        """Tokens before each node, from the root."""
        self._children: list[list[int]] = [[] for _ in nodes]
        self._leaves: list[list[Leaf]] = [[] for _ in nodes]
        for index, node in enumerate(nodes[1:], start=1):
            self._starts[index] = self._starts[node.parent] + nodes[node.parent].token_ids.size
            self._children[node.parent].append(index)
        for number, trajectory in enumerate(tree.group.trajectories):
            for index in tree.group.tree.path_to(trajectory.leaf):
                self._paths[index].append(trajectory.path)
            self._leaves[trajectory.leaf].append(self._leaf(number, sample))
        forked = {(path.forked_from, path.fork_length) for path in tree.paths if path.forked_from >= 0}
        self._looks: dict[int, dict[int, list[Look]]] = {}
        """By node, and by how many of its tokens come before the place."""
        for considered in tree.considered:
            self._place(considered, is_granted=(considered.path, considered.length) in forked)

    def blocks_behind(self, index: int) -> list[Block]:
        """The subtrees of a node, in the order of their first paths; one that ends there stands among them."""
        blocks = [
            self._block(child, is_branch=bool(index) and number > 0)
            for number, child in enumerate(self._children[index])
        ]
        if self._leaves[index] and (blocks or not index):
            paths = [leaf.path for leaf in self._leaves[index]]
            blocks.append(Block(path=paths[0], paths=paths, is_branch=False, leaves=self._leaves[index]))
        return blocks

    def _block(self, index: int, *, is_branch: bool) -> Block:
        block = Block(path=min(self._paths[index]), paths=self._paths[index], is_branch=is_branch)
        block.parts += self._parts(index)
        while len(self._children[index]) == 1 and not self._leaves[index]:
            (index,) = self._children[index]
            block.parts += self._parts(index)
        if self._children[index]:
            block.children = self.blocks_behind(index)
        else:
            block.leaves = self._leaves[index]
        return block

    def _parts(self, index: int) -> list[Part]:
        """The tokens of one node, cut where the monitor spoke."""
        node = self._tree.group.tree.nodes[index]
        if not node.token_ids.size:
            return []
        tokens = self._tokens(index)
        behind = self._starts[index] - self._tree.group.prompt.token_ids.size
        looks = self._looks.get(index, {})
        tool = self._tool_of(index) if node.kind is NodeKind.OBSERVED else ""
        cuts = sorted({0, *looks, len(tokens)})
        return [
            Part(
                kind="sampled" if node.kind is NodeKind.SAMPLED else "observed",
                start=behind + start,
                tokens=tokens[start:end],
                tool=tool,
                looks=looks.get(end, []),
            )
            for start, end in pairwise(cuts)
        ]

    def _tokens(self, index: int) -> list[Token]:
        group = self._tree.group
        node, start = group.tree.nodes[index], self._starts[index]
        before: Int32 = group.tree.token_ids(node.parent)
        pieces = pieces_of(np.concatenate([before, node.token_ids]), self._text, start=before.size)
        if node.kind is not NodeKind.SAMPLED:
            return [Token(text=piece) for piece in pieces]
        marks = [m.length for m in self._tree.paths[min(self._paths[index])].marks if m.length <= start]
        probe_end = marks[-1] + self._probe_tokens if marks else 0
        entropies, probabilities = node.entropies.tolist(), np.exp(node.logprobs).tolist()
        return [
            Token(text=piece, entropy=h, probability=p, version=v, is_probe=start + place < probe_end)
            for place, (piece, h, p, v) in enumerate(
                zip(pieces, entropies, probabilities, node.versions.tolist(), strict=True)
            )
        ]

    def _tool_of(self, index: int) -> str:
        path = self._tree.paths[min(self._paths[index])]
        end = self._starts[index] + self._tree.group.tree.nodes[index].token_ids.size
        numbers = [m.num_calls for m in path.marks if m.length <= end]
        return path.calls[numbers[-1] - 1].name if numbers and numbers[-1] else ""

    def _place(self, considered: ForkConsidered, *, is_granted: bool) -> None:
        """Find the node that ends at, or holds, the position a branch would start at."""
        leaf = self._tree.group.trajectories[considered.path].leaf
        for index in self._tree.group.tree.path_to(leaf):
            offset = considered.length - self._starts[index]
            if 0 < offset <= self._tree.group.tree.nodes[index].token_ids.size:
                look = Look(
                    entropy=(considered.entropy_low + considered.entropy_high) / 2,
                    baseline=considered.baseline,
                    score=considered.score,
                    coin=considered.coin,
                    is_wanted=considered.is_wanted,
                    is_granted=is_granted,
                )
                self._looks.setdefault(index, {}).setdefault(offset, []).append(look)
                return

    def _leaf(self, number: int, sample: Sample | None) -> Leaf:
        trajectory = self._tree.group.trajectories[number]
        advantages = sample.advantages[number] if sample is not None else np.empty(0, np.float32)
        given = advantages[np.flatnonzero(advantages)]
        return Leaf(
            path=trajectory.path,
            status=trajectory.status.value,
            reward=trajectory.reward.score,
            is_correct=trajectory.reward.is_correct,
            reason=trajectory.reward.reason,
            advantage=None if sample is None else float(given[-1]) if given.size else 0.0,
            num_tool_calls=trajectory.num_tool_calls,
        )

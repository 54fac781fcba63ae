"""EntropyMonitor: watches the tokens behind each tool result of a tree and asks the branching policy.

What it says depends on nothing but the tokens a branch would inherit (and, for `fork_at="tool_result"` with k > 1, on
probe tokens the branch samples anew: the bias of that mode). Every coin is drawn from (run, prompt, path, observation).
"""

import math

from engine.branching import Aepo, Branching, Chain
from engine.coins import coin
from engine.entropy import Interval, Signal, probe_mean
from engine.events import ForkConsidered
from engine.tree import Path, TreeBuilder


class EntropyMonitor:
    """The signal of one tree, as a function of its tokens; keeps no state of its own."""

    def __init__(self, tree: TreeBuilder, *, policy: Branching, seed: int, vocab_size: int) -> None:
        self._tree = tree
        self._policy = policy
        self._seed = seed
        self._log_vocab = math.log(vocab_size)

    def consider(self, path: Path) -> ForkConsidered | None:
        """What the policy says about the last observation of `path`; None while it is too early, or not its turn.

        A segment that ends inside the probe is judged by the tokens there are; a branch cannot begin at its end.
        """
        observation = len(path.marks)
        if path.num_considered >= observation or not (self._policy.looks_ahead or self._policy.looks_behind):
            return None
        k = self._policy.probe_tokens
        sampled = path.length - path.segment_start
        if self._policy.looks_behind:
            probe, num_probed = self._mean(path, self._start_of(path, observation - 1), k)
        elif sampled < k and not path.finish_reason:
            return None
        else:
            probe, num_probed = self._mean(path, path.segment_start, k)
        baseline, num_baseline = self._mean(path, path.prompt_length, k)
        signal = Signal(
            entropy=probe.middle,
            baseline=baseline.middle,
            num_probed=num_probed,
            num_baseline=num_baseline,
            log_vocab=self._log_vocab,
            coin=coin(self._seed, self._tree.prompt.prompt_id, path.number, observation),
            streak=path.streak,
        )
        at_result = self._policy.fork_at == "tool_result"
        length = path.segment_start + (0 if at_result else num_probed)
        is_possible = at_result or not (path.finish_reason and length == path.length)
        return ForkConsidered(
            prompt_id=self._tree.prompt.prompt_id,
            path=path.number,
            observation=observation,
            length=length,
            entropy_low=probe.low,
            entropy_high=probe.high,
            baseline=baseline.middle,
            score=self._policy.score(signal),
            coin=signal.coin,
            is_wanted=is_possible and self._policy.wants(signal),
        )

    def initial_paths(self, *, size: int) -> int:
        """N for this tree: paths that begin at the prompt before any supplement.

        AEPO knows it only when its monitor, the first path, has ended; until then it is 1.
        """
        policy = self._policy
        if isinstance(policy, Chain):
            return size
        if not isinstance(policy, Aepo) or not policy.adaptive_initial:
            return min(policy.initial, size)
        if not self._tree.paths or self._tree.paths[0].is_live:
            return 1
        leader = self._tree.paths[0]
        if not leader.marks:
            return min(policy.initial, size)
        root, _ = self._mean(leader, leader.prompt_length, policy.probe_tokens)
        tools = [self._mean(leader, mark.length, policy.probe_tokens)[0].middle for mark in leader.marks]
        return policy.initial_paths(root=root.middle, tools=sum(tools) / len(tools), size=size)

    def _start_of(self, path: Path, segment: int) -> int:
        return path.marks[segment - 1].length if segment else path.prompt_length

    def _mean(self, path: Path, start: int, k: int) -> tuple[Interval, int]:
        low_K, high_K = self._tree.entropies(path, start, k)
        return probe_mean(low_K, high_K), low_K.size

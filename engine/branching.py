"""Branching policies by name: given the signal behind a tool result, fork here or go on?

Each is a small value with one method; `granting` decides separately whether a wanted fork gets a place. Paper numbers
refer to ARPO (2507.19849) unless another one is named.
"""

import math
from typing import Annotated, Literal

from msgspec import Meta

from engine.config import Fraction, NonNegativeFloat, Positive, Section
from engine.entropy import Signal

ForkAt = Literal["probe_end", "tool_result"]
"""Where a branch starts: it inherits the probe (unbiased for any k), or samples the uncertain tokens anew."""


class Branching(Section, frozen=True, tag_field="kind"):
    """Base of all policies."""

    initial: Positive = 8
    """N: paths that begin at the prompt."""
    probe_tokens: Positive = 20
    """k: tokens behind a tool result whose entropy is looked at."""
    branches: Positive = 1
    """Z: branches a single granted event starts."""
    fork_at: ForkAt = "probe_end"
    """Where a branch starts: behind the k tokens, which it inherits (unbiased for any k), or at the tool result, where
    it samples them anew (more exploration; unbiased for k = 1)."""

    @property
    def looks_ahead(self) -> bool:
        """True where the decision waits for the k tokens behind a tool result."""
        return True

    @property
    def looks_behind(self) -> bool:
        """True where it is made at the tool result, from the segment before it."""
        return False

    def score(self, signal: Signal) -> float:
        """P of the policy: what `wants` compares, what `ranked` granting sorts by, and what the journal records."""
        return signal.delta

    def wants(self, signal: Signal) -> bool:
        """Fork here?"""
        raise TypeError(f"{type(self).__name__} has no rule")


class Arpo(Branching, frozen=True, tag="arpo"):
    """The paper's rule: `P = alpha + beta * dH` (eq. 5), fork when `P > tau`.

    >>> s = Signal(entropy=2.0, baseline=1.0, num_probed=20, num_baseline=20, log_vocab=10.0, coin=0.9)
    >>> round(Arpo().score(s), 3), Arpo().wants(s)          # 0.5 + 0.2 * 0.1
    (0.52, True)
    """

    alpha: float = 0.5
    """P where the entropy is that of the baseline."""
    beta: float = 0.2
    """Weight of the rise in entropy."""
    tau: float = 0.5
    """Fork above this P."""

    def score(self, signal: Signal) -> float:
        return self.alpha + self.beta * signal.delta

    def wants(self, signal: Signal) -> bool:
        return self.score(signal) > self.tau


class ArpoSampled(Branching, frozen=True, tag="arpo_sampled"):
    """Fork with probability `P = alpha + beta * dH`, clipped to [0, 1]."""

    alpha: float = 0.5
    """P where the entropy is that of the baseline."""
    beta: float = 0.2
    """Weight of the rise in entropy."""

    def score(self, signal: Signal) -> float:
        return min(max(self.alpha + self.beta * signal.delta, 0.0), 1.0)

    def wants(self, signal: Signal) -> bool:
        return signal.coin < self.score(signal)


class Aepo(Branching, frozen=True, tag="aepo"):
    """AEPO (2510.14545): `P = (alpha + gamma * dH) * (1 - penalty * l)`, fork when `P > tau`.

    l counts observations in a row behind which a fork was wanted. With `adaptive_initial`, the first path runs to its
    end as the monitor (and stays a trajectory of the group), then N follows from how uncertain the question is
    against its tool results: `N = M * sigmoid(balance * (H_root - H_tool))`.
    """

    alpha: float = 0.5
    """P where the entropy is that of the baseline."""
    gamma: float = 0.2
    """Weight of the rise in entropy."""
    penalty: NonNegativeFloat = 0.05
    """Taken from P, as a share, for each fork wanted in a row."""
    tau: float = 0.5
    """Fork above this P."""
    adaptive_initial: bool = True
    """Choose N by the first path; otherwise it is `initial`."""
    balance: float = 0.5
    """How strongly the difference of entropies moves N."""

    def score(self, signal: Signal) -> float:
        return (self.alpha + self.gamma * signal.delta) * (1.0 - self.penalty * signal.streak)

    def wants(self, signal: Signal) -> bool:
        return self.score(signal) > self.tau

    def initial_paths(self, *, root: float, tools: float, size: int) -> int:
        """N out of M=`size` for mean entropies at the root and behind tool results, in nats; 1 to M.

        >>> Aepo().initial_paths(root=1.0, tools=1.0, size=16)
        8
        """
        return min(max(round(size / (1.0 + math.exp(-self.balance * (root - tools)))), 1), size)


class TreeGrpo(Branching, frozen=True, tag="tree_grpo"):
    """Tree-GRPO (2509.21240): no entropy. N chains first; then rounds, each expanding random inner nodes.

    A node is a whole agent step, so a branch starts at a tool result; `expand` nodes a tree and round, until M.
    """

    initial: Positive = 2
    fork_at: ForkAt = "tool_result"
    expand: Positive = 2
    """Inner nodes expanded in a tree and round."""

    @property
    def looks_ahead(self) -> bool:
        return False

    def wants(self, signal: Signal) -> bool:
        return False


class Uniform(Branching, frozen=True, tag="uniform"):
    """The control the paper lacks: fork behind a tool result with a fixed probability, blind to entropy."""

    rate: Fraction = 0.5
    """Probability of a fork."""

    def score(self, signal: Signal) -> float:
        return self.rate

    def wants(self, signal: Signal) -> bool:
        return signal.coin < self.rate


class Chain(Branching, frozen=True, tag="chain"):
    """No forks: M independent samples, as GRPO, DAPO and REINFORCE++ use them; `initial` is taken as M."""

    @property
    def looks_ahead(self) -> bool:
        return False

    def wants(self, signal: Signal) -> bool:
        return False


class Official(Branching, frozen=True, tag="official"):
    """The released code's decision rule, for comparison only: `clip(u - w * D, 0, 1) <= branch_probability`.

    D is a difference of *sums* over at most 20 positions, divided by ln V, of the segment *before* the tool call
    against the first segment; it decides at the tool result, without looking behind it.
    """

    initial: Positive = 8
    fork_at: ForkAt = "tool_result"
    entropy_weight: float = 0.2
    """w of the rule."""
    branch_probability: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Largest value that forks."""

    @property
    def looks_ahead(self) -> bool:
        return False

    @property
    def looks_behind(self) -> bool:
        return True

    def score(self, signal: Signal) -> float:
        difference = signal.entropy * signal.num_probed - signal.baseline * signal.num_baseline
        return min(max(signal.coin - self.entropy_weight * difference / signal.log_vocab, 0.0), 1.0)

    def wants(self, signal: Signal) -> bool:
        return self.score(signal) <= self.branch_probability


AnyBranching = Arpo | ArpoSampled | Aepo | TreeGrpo | Uniform | Chain | Official

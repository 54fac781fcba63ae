"""The vocabulary: every value that crosses from one part of the engine to another.

Axes: T tokens. Arrays are one-dimensional and read-only once they have crossed a process (see `codec`).
A *segment* is what the policy samples between two observations; a *path* is root to tip of a living tree; a
*trajectory* is a path that has ended.
"""

from enum import StrEnum
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.calls import CallOutcome as CallOutcome
from engine.calls import ToolCall as ToolCall
from engine.calls import ToolResult as ToolResult
from engine.calls import ToolSpec as ToolSpec
from engine.calls import ToolStatus as ToolStatus

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Version = int
"""Number of optimiser steps behind a set of weights; 0 is the model as it was loaded."""
UpdateMode = Literal["retract", "in_place", "drain"]
"""What a weight update does to running requests: re-prefill them, keep their KV, or let them end first."""


class Value(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Base of everything on the wire: frozen, by keyword; compared by field only where it holds no array."""


class Prompt(Value, frozen=True):
    """One row of a data set, rendered and tokenised. Produced by `dataset`, consumed by the rollout actor."""

    prompt_id: str
    """Unique in a run: epoch and row, for example `e0-r17`."""
    epoch: int
    row: int
    token_ids: Int32
    question: str
    ground_truth: str
    """What the reward compares with; never shown to the policy."""
    data_source: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to sample one segment."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy; log-probabilities are then those of temperature 1."""
    top_p: float = 1.0
    top_k: int = -1
    """-1 keeps the whole vocabulary."""
    stop: tuple[str, ...] = ()
    """The segment ends with the token that completes one of these strings; that token is kept."""
    stop_token_ids: tuple[int, ...] = ()
    """The segment ends with one of these tokens; it is kept."""
    seed: int = 0
    """With the position of a token, the only source of randomness in a backend that supports it."""


class GenerateRequest(Value, frozen=True):
    """Ask a generator for one segment. Produced by the rollout actor, consumed by a `Generator`."""

    request_id: str
    token_ids: Int32
    """The whole path so far; a backend with a radix cache computes only what it has not seen."""
    sampling: SamplingParams
    affinity_key: str = ""
    """Requests with one key meet on one server, and so in one radix cache."""
    cache_scope: str = ""
    """Prefixes are shared within a scope only: what one scope computed is neither read nor noticed by another."""
    stream_interval: int = 16
    """Tokens in a streamed chunk at least, but for the last one; a backend may hold some back for a while, where it
    looks for a stop string or for a version. The entropy monitor sets it to its k."""
    precedence: tuple[float, ...] = ()
    """Among requests that wait the smallest goes first, ties in the order of arrival (see `turnstile`)."""
    fork_after: int = 0
    """Sampled tokens behind which forks may begin before the request ends (see `Generator.generate`); 0 for none."""


FinishReason = Literal["", "stop", "length", "aborted"]
"""Empty while more chunks follow; `stop` a stop token or string; `length` max_new_tokens; `aborted` by `abort`."""


class Completion(Value, frozen=True):
    """One streamed chunk of a segment. Produced by a generator; arrays have one entry a sampled token."""

    request_id: str
    token_ids: Int32
    logprobs: Float32
    """Behaviour log-probabilities at the sampling temperature, in float32, from the server that sampled."""
    entropy_low: Float32
    """Lower bound, in nats, of the entropy of the distribution each token was drawn from."""
    entropy_high: Float32
    """Upper bound; equal to the lower one where the backend sees the whole distribution."""
    versions: Int32
    """Weight version that sampled each token, stamped by the server."""
    finish_reason: FinishReason = ""
    is_mixed: bool = False
    """True where the tokens were sampled over KV of an older version (`in_place` updates)."""
    begins_anew: bool = False
    """True where the backend began anew in the middle of the segment: it may miss a stop string that began before."""
    num_cached_tokens: int = 0
    """Prompt tokens read from the radix cache (in the first chunk; 0 later)."""
    num_prefilled_tokens: int = 0
    """Prompt tokens computed for this request (in the first chunk; 0 later, except after a `retract`)."""


class Reward(msgspec.Struct, frozen=True, kw_only=True):
    """The score of one trajectory and what it was made of."""

    score: float
    is_correct: bool = False
    """The task's own idea of success, counted by evaluation; a score may be partial."""
    reason: str = ""
    components: dict[str, float] = {}


class NodeKind(StrEnum):
    """Where a node's tokens came from; only sampled ones are ever trained."""

    PROMPT = "prompt"
    SAMPLED = "sampled"
    OBSERVED = "observed"


class Node(Value, frozen=True):
    """A run of tokens that a set of paths shares. The root holds the prompt.

    For `SAMPLED` nodes the four arrays behind `token_ids` have its length; for others they are empty.
    """

    parent: int
    """Index of the parent in the tree's nodes, always smaller than this node's own; -1 for the root."""
    kind: NodeKind
    token_ids: Int32
    logprobs: Float32
    versions: Int32
    entropies: Float32
    """Nats; the middle of the interval where the backend gave one."""


class RolloutStatus(StrEnum):
    """How a path ended."""

    COMPLETED = "completed"
    """The policy ended it."""
    TRUNCATED = "truncated"
    """Out of tokens."""
    FAILED = "failed"
    """The infrastructure failed; never trained."""


class Trajectory(msgspec.Struct, frozen=True, kw_only=True):
    """One path that has ended, as an index into its tree."""

    path: int
    """Identity of the path in its tree, from 0 in the order of creation."""
    leaf: int
    """Index of its last node."""
    status: RolloutStatus
    reward: Reward
    forked_from: int = -1
    """The path it branched off; -1 for one that began at the prompt."""
    fork_length: int = 0
    """Tokens of the path, counted from its root, that it inherited when it began."""
    num_tool_calls: int = 0
    """Along the whole path, inherited ones included."""
    num_multi_tool: int = 0
    """Different tools that really ran along the path."""


class TrajectoryTree(Value, frozen=True):
    """All nodes of one prompt's rollouts, parents before children."""

    nodes: tuple[Node, ...]

    def path_to(self, leaf: int) -> list[int]:
        """Node indices from the root to `leaf`, in order."""
        path: list[int] = []
        while leaf >= 0:
            path.append(leaf)
            leaf = self.nodes[leaf].parent
        return path[::-1]

    def token_ids(self, leaf: int) -> Int32:
        """The tokens of the path that ends in `leaf`: exactly what the last request saw and sampled."""
        return np.concatenate([self.nodes[i].token_ids for i in self.path_to(leaf)])


class TrajectoryGroup(Value, frozen=True):
    """Everything one prompt came to. Produced by the rollout actor, consumed by advantages, learner, reports."""

    prompt: Prompt
    tree: TrajectoryTree
    trajectories: tuple[Trajectory, ...]
    num_tool_calls_requested: int = 0
    num_tool_calls_executed: int = 0
    num_tool_calls_cached: int = 0
    num_tool_calls_shared: int = 0
    num_tool_calls_refused: int = 0
    num_tokens_cached: int = 0
    num_tokens_prefilled: int = 0
    wall_s: float = 0.0

    @property
    def oldest_version(self) -> Version:
        """The oldest version among sampled tokens that may be trained: what staleness is measured on."""
        whole = [trajectory for trajectory in self.trajectories if trajectory.status is not RolloutStatus.FAILED]
        nodes = [self.tree.nodes[i] for i in {i for one in whole for i in self.tree.path_to(one.leaf)}]
        return min([int(n.versions.min()) for n in nodes if n.kind is NodeKind.SAMPLED and n.versions.size], default=0)

    @property
    def num_tool_calls_answered(self) -> int:
        """Calls that a tool answered, whoever's execution it was: what the policy did, and not what it cost."""
        return self.num_tool_calls_executed + self.num_tool_calls_cached + self.num_tool_calls_shared

    @property
    def num_forks(self) -> int:
        """Trajectories that branched off another one behind the prompt."""
        return sum(t.forked_from >= 0 for t in self.trajectories)


class Sample(Value, frozen=True):
    """A group with its credit. Produced by an advantage estimator; the learner knows no algorithm."""

    group: TrajectoryGroup
    advantages: tuple[Float32, ...]
    """For each trajectory, one value for each token of its path; zero where nothing was sampled."""


class Batch(Value, frozen=True):
    """What one optimiser step trains on, made of trees; the flat form is derived by the learner's batcher."""

    step: int
    samples: tuple[Sample, ...]


class WeightRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where a published set of weights lies. Produced by the learner, consumed by generators."""

    version: Version
    path: str
    """A folder in Hugging Face form: safetensors files whose names are those of the HF model."""

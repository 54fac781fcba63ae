"""The events: one append-only union, of which all state of the control plane is a fold.

Produced by the controller, the rollout actors and the learner's side of the loop; consumed by the journal, by the
folds (`tree.TreeBuilder`, `run_state.RunState`, `metrics.MetricsFold`), by reports and by replay. An event
says what happened, never what to do. `t` is seconds on the clock of the run.
"""

import msgspec

from engine.reports import StepReport
from engine.types import (
    FinishReason,
    Float32,
    Int32,
    Prompt,
    Reward,
    RolloutStatus,
    ToolCall,
    ToolResult,
    Version,
)


class Event(msgspec.Struct, frozen=True, kw_only=True, eq=False, tag=True, tag_field="e"):
    """Base of all events."""

    t: float = 0.0


class TreeEvent(Event, frozen=True):
    """Something that happened in the tree of one prompt."""

    prompt_id: str


class RunStarted(Event, frozen=True):
    """A process began to work on the run; `resumed` counts the processes before it."""

    run: str
    config_digest: str
    resumed: int = 0


class PhaseStarted(Event, frozen=True):
    """A part of the run began, such as its cold start; it lasts until the next one begins or the run ends."""

    name: str
    total: int | None = None
    """How many steps or questions it has, where that is known."""


class SupervisedStep(Event, frozen=True):
    """An optimiser step on traces: of the cold start, or of the control."""

    report: StepReport


class PromptAdmitted(TreeEvent, frozen=True):
    """A prompt took a slot of the buffer."""

    prompt: Prompt
    version: Version
    """Version of the published weights when it was admitted."""
    index: int
    """Order of admission, over all processes that worked on the run."""
    cohort: int


class PathStarted(TreeEvent, frozen=True):
    """A path began at the prompt."""

    path: int
    is_supplement: bool = False
    """True for one that fills up a tree whose forks did not use the budget."""


class ForkConsidered(TreeEvent, frozen=True):
    """The monitor saw k tokens behind a tool result, and the policy spoke."""

    path: int
    observation: int
    """Which tool result of the path, from 1."""
    length: int
    """Tokens of the path at which a branch would start."""
    entropy_low: float
    entropy_high: float
    """Bounds of the mean entropy of the probe, in nats."""
    baseline: float
    """Mean entropy at the start of the initial path it descends from, in nats."""
    score: float
    """P of the policy: what is compared with the threshold or the coin."""
    coin: float
    is_wanted: bool
    """The policy's answer; a grant may still be refused by the budget."""


class ForkRanked(TreeEvent, frozen=True):
    """A wanted fork entered the ranking of its cohort (`ranked` granting alone)."""

    path: int
    length: int
    place: int
    """Which one of its cohort it is, from 1."""


class ForkLapsed(TreeEvent, frozen=True):
    """A fork was granted when there was no room for a branch any more."""

    path: int
    length: int


class Forked(TreeEvent, frozen=True):
    """A branch was granted: `child` begins with the first `length` tokens of `path`, and what was seen in them."""

    path: int
    child: int
    length: int


class TokensSampled(TreeEvent, frozen=True):
    """The policy extended a path."""

    path: int
    token_ids: Int32
    logprobs: Float32
    entropy_low: Float32
    entropy_high: Float32
    versions: Int32
    finish_reason: FinishReason = ""
    """How the segment ended; empty while it grows. An aborted request leaves it growing."""
    num_cached_tokens: int = 0
    num_prefilled_tokens: int = 0
    is_mixed: bool = False
    """Sampled over KV of older weights than `versions` says."""


class ToolRequested(TreeEvent, frozen=True):
    """A path asked for a tool."""

    path: int
    call: ToolCall
    index: int
    """Which call of the path, from 0."""


class ToolRerun(TreeEvent, frozen=True):
    """A call that was under way when its process ended, and may have run, is run again: once, and not a second time."""

    path: int
    index: int


class ToolFinished(TreeEvent, frozen=True):
    """A call came back."""

    path: int
    index: int
    result: ToolResult


class Observed(TreeEvent, frozen=True):
    """Tokens the policy did not sample were appended to a path: rendered tool results."""

    path: int
    token_ids: Int32


class PathEnded(TreeEvent, frozen=True):
    """A path will not grow any more."""

    path: int
    status: RolloutStatus
    detail: str = ""


class Rewarded(TreeEvent, frozen=True):
    """A trajectory was scored."""

    path: int
    reward: Reward


class GroupFinished(TreeEvent, frozen=True):
    """All trajectories of a prompt are scored, and its group may be trained."""


class GroupRefused(TreeEvent, frozen=True):
    """A group will not be trained; its slot is free at once."""

    reason: str


class BatchTaken(Event, frozen=True):
    """The learner was given these groups, in this order."""

    step: int
    prompt_ids: tuple[str, ...]
    wait_s: float = 0.0
    """How long the learner waited for it."""
    digest: str = ""
    """Of the batch (see `batches.digest`): what a resumed run and a replay must come to as well."""


class StepFinished(Event, frozen=True):
    """The optimiser step was applied."""

    report: StepReport


class WeightsPublished(Event, frozen=True):
    """Every generator samples with this version; the slots of the step's groups are free."""

    version: Version
    step: int
    """The step that made them; a resumed run publishes those of its last published step once more."""
    prompt_ids: tuple[str, ...]


class Checkpointed(Event, frozen=True):
    """The state behind this step is durable."""

    step: int
    version: Version
    path: str


class Evaluated(Event, frozen=True):
    """The policy was measured."""

    step: int
    version: Version
    metrics: dict[str, float]


class ControlEvaluated(Event, frozen=True):
    """What more supervised steps make of the starting model, in the time RL took, was measured as RL was."""

    num_steps: int
    metrics: dict[str, float]


class GeneratorsMeasured(Event, frozen=True):
    """What all generators had done by now, since they started."""

    busy_s: float
    """Seconds in forward passes, summed over generators."""
    num_sampled_tokens: int


class RunFinished(Event, frozen=True):
    """The run reached its end."""


AnyTreeEvent = (
    PromptAdmitted
    | PathStarted
    | ForkConsidered
    | ForkRanked
    | ForkLapsed
    | Forked
    | TokensSampled
    | ToolRequested
    | ToolRerun
    | ToolFinished
    | Observed
    | PathEnded
    | Rewarded
    | GroupFinished
    | GroupRefused
)
AnyEvent = AnyTreeEvent | (
    RunStarted
    | PhaseStarted
    | SupervisedStep
    | BatchTaken
    | StepFinished
    | WeightsPublished
    | Checkpointed
    | Evaluated
    | ControlEvaluated
    | GeneratorsMeasured
    | RunFinished
)

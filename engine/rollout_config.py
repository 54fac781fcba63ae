"""What a person may say about rollouts: how to sample, when to fork, what to spend."""

from typing import Annotated, Literal

from msgspec import Meta

from engine.branching import AnyBranching, Arpo
from engine.config import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section
from engine.granting import AnyGranting, Late, Paper

OUT_OF_CALLS = "Tool call refused: the budget of tool calls is used up. Answer with what you know."

Order = Literal["longest_expected", "first_come"]


class SamplingConfig(Section, frozen=True):
    """How a path is sampled, and how long it may get."""

    max_response_tokens: Positive = 4096
    """Tokens of a path behind its prompt, tool results included."""
    max_segment_tokens: Positive = 4096
    """Tokens sampled between two observations."""
    max_turns: Positive = 16
    """Observations of a path; one that wants more is truncated."""
    temperature: NonNegativeFloat = 1.0
    """Divides the logits; 0 is greedy. `learner.temperature` must be the same."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Sample from the fewest tokens that hold this share; 1 is all."""
    top_k: int = -1
    """Sample from so many of the likeliest tokens; -1 is all."""
    chunk_timeout_s: PositiveFloat = 600.0
    """How long a generator may say nothing until its request counts as failed."""
    max_retries: NonNegative = 3
    """How often a segment is continued from its own tokens after its generator failed or let go of it."""


class BudgetConfig(Section, frozen=True):
    """Hard limits; unset means unlimited. A call is reserved before it runs. A path counts the calls that a tool
    answered; prompt, cohort and run count those that really ran, not those that a cache or another call answered."""

    calls_per_path: NonNegative | None = 6
    """Calls of one path that a tool answered."""
    calls_per_prompt: NonNegative | None = None
    """Calls that ran for the tree of one prompt."""
    calls_per_cohort: NonNegative | None = None
    """Calls that ran for the prompts admitted together."""
    calls_per_run: NonNegative | None = None
    """Calls that ran in the whole run."""
    leaves_per_cohort: Positive | None = None
    """Trajectories a cohort may have in all: M is then a cap, and `ranked` granting moves places between trees."""
    out_of_calls: Annotated[str, Meta(min_length=1)] = OUT_OF_CALLS
    """What the model reads in place of a result when a limit is reached."""


class RolloutConfig(Section, frozen=True):
    """How the tree of a prompt is grown."""

    size: Positive = 16
    """M: trajectories a prompt."""
    branching: AnyBranching = Arpo()
    """When a path forks."""
    granting: AnyGranting = Paper()
    """Which of the wanted forks get a place."""
    grow: Literal["all", "mixed"] = "all"
    """Which trees are grown to M. `mixed`: one whose paths have all come to the same score when the last of them ends
    stays as it is, and costs no more; one that shows a difference gets the rest of its places."""
    supplements: bool = True
    """Fill a tree up to M with fresh paths where no further fork is wanted; else it ends with fewer trajectories."""
    sampling: SamplingConfig = SamplingConfig()
    budget: BudgetConfig = BudgetConfig()
    stream_interval: Positive = 32
    """Tokens in a streamed chunk of a path that no entropy monitor watches: what a segment may lose when its generator
    or this process ends. Each chunk is an event, and costs as much whatever its length."""
    order: Order = "first_come"
    """Who goes first where requests wait for the policy or for tools: whoever came first, or of the oldest cohort the
    one with the longest expected remaining work, as learned in the run (see `standing`, and there why it is no
    default). Changes when things happen, and in a deterministic run nothing else. SGLang keeps an order of its own."""

    def __post_init__(self) -> None:
        if isinstance(self.granting, Late) and self.branching.branches > 1:
            raise ValueError("late granting deals out single places, so branching.branches must be 1")

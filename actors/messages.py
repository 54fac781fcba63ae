"""What actors say to each other: the same Structs in one process, across processes and on a cluster.

A call has one body; its answers carry the same number, and the last one says so. Bodies are the engine's own types
wherever there is one.
"""

from engine.events import AnyTreeEvent
from engine.inference.embedded import EmbeddedConfig
from engine.inference.sglang_config import SglangConfig
from engine.renderer import RendererConfig
from engine.reports import GeneratorStatistics, StepReport
from engine.rollout_config import RolloutConfig
from engine.run_state import CohortUse
from engine.types import (
    Batch,
    Completion,
    Float32,
    GenerateRequest,
    Prompt,
    ToolCall,
    ToolResult,
    UpdateMode,
    Value,
    WeightRef,
)
from learner.config import LearnerConfig
from tools.config import ToolsConfig


class Body(Value, frozen=True, tag=True):
    """Base of what a frame carries."""


class StartGenerator(Body, frozen=True):
    """First call of a generator: what to load, or which server to start. Answered by `Done` when it can serve."""

    name: str
    config: EmbeddedConfig | SglangConfig
    model_path: str
    logs: str = ""
    """Folder for the log of a server."""
    threads: int = 1
    start_timeout_s: float = 300.0
    update_timeout_s: float = 600.0


class StartLearner(Body, frozen=True):
    """First frame to a learner's process: what to load, and which rank it is."""

    config: LearnerConfig
    model_path: str
    weights_dir: str
    rank: int
    world_size: int
    init_method: str | None


class StartTools(Body, frozen=True):
    """First call of a tool worker."""

    config: ToolsConfig


class StartRollouts(Body, frozen=True):
    """First call of a rollout actor: whom it asks. Generators and tool workers are named; without the latter it runs
    the tools itself."""

    model_path: str
    renderer: RendererConfig
    tools: ToolsConfig
    generators: tuple[str, ...]
    tool_workers: tuple[str, ...]


class Grow(Body, frozen=True):
    """Grow the tree of a prompt from where its events end; answered by `Grown` for what happens, as it happens."""

    prompt: Prompt
    events: tuple[AnyTreeEvent, ...]
    config: RolloutConfig
    seed: int
    scope: str
    """Trees of one scope share their cohorts: those of a run, or of one evaluation."""
    cohort: int
    use: CohortUse
    """What the cohort has used of its budgets, this tree included."""
    is_logical: bool


class Grown(Body, frozen=True):
    """What happened in a tree since the last of these, in order; the last one of a call ends the group."""

    events: tuple[AnyTreeEvent, ...]


class CallTool(Body, frozen=True):
    """Answered by `ToolCalled`."""

    call: ToolCall
    history: tuple[ToolCall, ...]
    precedence: tuple[float, ...] = ()


class ToolCalled(Body, frozen=True):
    result: ToolResult


class Generate(Body, frozen=True):
    """Answered by a `Chunk` for each completion."""

    request: GenerateRequest


class Open(Body, frozen=True):
    """The generator may be asked by others now."""


class Abort(Body, frozen=True):
    request_id: str


class UpdateWeights(Body, frozen=True):
    ref: WeightRef
    mode: UpdateMode


class GetStatistics(Body, frozen=True):
    """Answered by `Statistics`."""


class Step(Body, frozen=True):
    """Answered by `Stepped`."""

    batch: Batch


class Publish(Body, frozen=True):
    """Answered by `Published`."""


class Save(Body, frozen=True):
    path: str


class Load(Body, frozen=True):
    """Answered by `Loaded`."""

    path: str


class ExportHf(Body, frozen=True):
    """Write the weights, configuration and tokenizer as a Hugging Face folder."""

    path: str


class Score(Body, frozen=True):
    """Log-probabilities of given tokens under the learner's weights; answered by `Scored`."""

    token_ids: tuple[bytes, ...]
    """int32, one a sequence."""
    temperature: float = 1.0


class Done(Body, frozen=True):
    """The call was carried out; there is nothing to say."""


class Chunk(Body, frozen=True):
    completion: Completion


class Statistics(Body, frozen=True):
    statistics: GeneratorStatistics


class Stepped(Body, frozen=True):
    report: StepReport


class Published(Body, frozen=True):
    ref: WeightRef


class Loaded(Body, frozen=True):
    version: int


class Scored(Body, frozen=True):
    logprobs: Float32
    """All sequences one after the other, as long as their tokens; 0 for each first token."""


class Failed(Body, frozen=True):
    """The call failed with this error of the error tree."""

    kind: str
    message: str


AnyStart = StartGenerator | StartLearner | StartTools | StartRollouts
AnyCall = (
    AnyStart
    | Grow
    | CallTool
    | Generate
    | Open
    | Abort
    | UpdateWeights
    | GetStatistics
    | Step
    | Publish
    | Save
    | Load
    | ExportHf
    | Score
)
AnyAnswer = Done | Chunk | Statistics | Stepped | Published | Loaded | Scored | Grown | ToolCalled | Failed


class Call(Value, frozen=True):
    """One frame to an actor."""

    number: int
    body: AnyCall


class Answer(Value, frozen=True):
    """One frame from an actor."""

    number: int
    body: AnyAnswer
    is_last: bool = True

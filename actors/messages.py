"""What actors say to each other: the same Structs in one process, across processes and on a cluster.

A call has one body; its answers carry the same number, and the last one says so. Bodies are the engine's own types
wherever there is one.
"""

from engine.inference.embedded import EmbeddedConfig
from engine.types import (
    Batch,
    Completion,
    Float32,
    GenerateRequest,
    GeneratorStatistics,
    StepReport,
    UpdateMode,
    Value,
    WeightRef,
)
from learner.config import LearnerConfig


class Body(Value, frozen=True, tag=True):
    """Base of what a frame carries."""


class StartGenerator(Body, frozen=True):
    """First frame to a generator's process: what to load. Answered by `Done` when it can serve."""

    config: EmbeddedConfig
    model_path: str


class StartLearner(Body, frozen=True):
    """First frame to a learner's process: what to load, and which rank it is."""

    config: LearnerConfig
    model_path: str
    weights_dir: str
    rank: int
    world_size: int
    init_method: str | None


class Generate(Body, frozen=True):
    """Answered by a `Chunk` for each completion."""

    request: GenerateRequest


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


AnyCall = (
    StartGenerator
    | StartLearner
    | Generate
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
AnyAnswer = Done | Chunk | Statistics | Stepped | Published | Loaded | Scored | Failed


class Call(Value, frozen=True):
    """One frame to an actor."""

    number: int
    body: AnyCall


class Answer(Value, frozen=True):
    """One frame from an actor."""

    number: int
    body: AnyAnswer
    is_last: bool = True

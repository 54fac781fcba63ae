"""Config: everything a person may say about a run, put together from the sections of all parts."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from actors.eval_config import EvalConfig
from actors.gateway.config import ServeConfig
from actors.metrics_config import MetricsConfig
from engine.config import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section, load
from engine.dataset import DataConfig
from engine.errors import ConfigError
from engine.inference.embedded import EmbeddedConfig
from engine.inference.sglang_config import SglangConfig
from engine.journal import JournalConfig
from engine.renderer import RendererConfig
from engine.rollout_config import RolloutConfig
from engine.train_config import TrainConfig
from learner.config import LearnerConfig
from tools.config import ToolsConfig
from tools.toolworld import ToolworldConfig

_HERE = Path(__file__).resolve().parent
SHIPPED = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"
"""The configurations that come with the project: a part of this package in a wheel, its neighbour in a checkout."""


class RunConfig(Section, frozen=True):
    """Which run this is."""

    name: str | None = None
    """The run lives in `dir/name`; unset is the name of the configuration file and a number."""
    dir: str = "runs"
    """Folder of all runs."""
    seed: NonNegative = 0
    """Every coin and every sample of the run derives from it."""


class HfModel(Section, frozen=True, tag="hf", tag_field="kind"):
    """A model that exists: a folder in Hugging Face form."""

    path: str
    """With `config.json`, safetensors and the tokenizer."""


class TinyModel(Section, frozen=True, tag="tiny", tag_field="kind"):
    """A small model with random weights, made on the spot, with a tokenizer made from the run's own texts."""

    tokenizer: Literal["bpe", "words"] = "bpe"
    """`bpe` is trained on the prompts of the data and takes any text; `words` has one token a word of the world."""
    vocab_size: Positive = 2048
    """Upper bound, for `bpe`."""
    shape: Literal["qwen2", "qwen3", "llama"] = "qwen3"
    """Which family's architecture; `qwen3` normalises queries and keys."""
    hidden_size: Positive = 128
    """Width of the residual stream."""
    num_layers: Positive = 2
    """Transformer blocks."""
    num_heads: Positive = 4
    """Query heads of a layer."""
    num_kv_heads: Positive = 2
    """Key and value heads; divides `num_heads`."""
    head_dim: Positive = 32
    """Numbers in a head."""
    intermediate_size: Positive = 384
    """Width of the feed-forward layer."""
    max_positions: Positive = 8192
    """Longest sequence: prompt and response together, in tokens."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary position embedding."""
    tie: bool = True
    """The output layer is the embedding matrix."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the linear weights."""
    embedding_std: PositiveFloat | None = None
    """Standard deviation of the embeddings; unset is `init_std`."""
    qk_norm: PositiveFloat = 1.0
    """What the norms of queries and keys begin with, for `qwen3`."""
    seed: NonNegative = 0
    """Of the weights."""


ModelConfig = HfModel | TinyModel


GeneratorConfig = EmbeddedConfig | SglangConfig


class SftConfig(Section, frozen=True, kw_only=True):
    """One stage of a supervised cold start on tool-use traces; tokens that tools wrote are masked."""

    traces: tuple[str, ...]
    """JSONL files of traces; each batch takes from them in turn, by `shares`."""
    shares: tuple[Annotated[float, Meta(gt=0)], ...] = ()
    """Share of each file in a batch; unset is equal shares."""
    steps: Positive
    """Optimiser steps of the stage."""
    until_loss: PositiveFloat | None = None
    """End the stage when the mean loss of the last 20 steps is below; one that is not by its last step is an error."""
    batch_size: Positive = 32
    """Traces a step."""
    max_tokens: Positive = 4096
    """A longer trace is refused."""
    learner: LearnerConfig
    """With the `nll` loss; its layout may differ from the RL learner's."""


class Resources(Section, frozen=True):
    """What one actor of a role needs of its node."""

    cpus: NonNegativeFloat = 1.0
    """CPUs that Ray sets aside for it."""
    gpus: NonNegativeFloat = 0.0
    """GPUs that Ray sets aside for it."""
    custom: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Further resources by the names that the cluster gave them."""


class RayConfig(Section, frozen=True):
    """Where the Ray cluster is, and what each role gets of it. A generator and a learner rank take their GPUs here."""

    address: str | None = None
    """Of the head node, `host:port`; unset is the cluster of the job this runs in, or a new one on this machine."""
    connect_timeout_s: PositiveFloat = 30.0
    """How long the cluster may take to answer, and to find room for the actors."""
    num_rollout_actors: NonNegative = 1
    """Actors that grow trees; 0 grows them in the controller."""
    num_tool_workers: NonNegative = 0
    """Actors that run tools; 0 runs them where the trees grow."""
    generator: Resources = Resources()
    """Of each generator; a server over several GPUs takes them all here."""
    learner: Resources = Resources()
    """Of each rank of the learner."""
    rollout: Resources = Resources(cpus=0.5)
    """Of each rollout actor."""
    tools: Resources = Resources(cpus=0.5)
    """Of each tool worker."""


class RuntimeConfig(Section, frozen=True):
    """Which processes there are, and where."""

    backend: Literal["local", "ray"] = "local"
    """`local` is processes of this machine, `ray` actors of a cluster: the same ones."""
    num_generators: Positive = 1
    """How many are started; servers that are there already (`generator.urls`) are counted by their addresses."""
    threads: Positive = 1
    """Threads of each process; more than the machine has cores for costs a factor."""
    start_timeout_s: PositiveFloat = 300.0
    """How long a process may take until it answers for the first time."""
    patience_s: PositiveFloat = 900.0
    """How long a run may stand still until it says who waits for what, writes that to `logs/`, and has generators
    started again that do not answer. It ends where nothing happens for longer than any deadline allows."""
    restart_limit: Positive = 5
    """How often in a row a lost actor is started again without having been of use until it is given up."""
    weights_dir: str | None = None
    """Folder for published weights, which every generator must see; unset is shared memory, or a temporary folder."""
    ray: RayConfig = RayConfig()


class Config(Section, frozen=True, kw_only=True):
    """One configuration file. Paths may name parts of a generated task: `world:train`, `world:corpus`, ..."""

    @classmethod
    def load(cls, path: str | Path, *overrides: str) -> "Config":
        """Read a TOML file, with overrides such as `train.steps=3`, or files that are laid over it.

        A file that is not there is looked for among the shipped ones: `algorithms/dapo.toml`. Raises `ConfigError` with
        the path of the key.
        """
        return load(path, cls, overrides=overrides, shipped=SHIPPED)

    run: RunConfig = RunConfig()
    model: ModelConfig
    """What is trained."""
    world: ToolworldConfig | None = None
    """Generate a task for this run."""
    data: DataConfig
    eval: EvalConfig | None = None
    renderer: RendererConfig = RendererConfig()
    tools: ToolsConfig = msgspec.field(default_factory=ToolsConfig)
    rollout: RolloutConfig = RolloutConfig()
    generator: GeneratorConfig = EmbeddedConfig()
    """Who samples."""
    learner: LearnerConfig = LearnerConfig()
    sft: tuple[SftConfig, ...] = ()
    """Stages of a cold start before the first RL step, each from the model that the one before it made."""
    train: TrainConfig = TrainConfig()
    journal: JournalConfig = JournalConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    serve: ServeConfig = ServeConfig()
    metrics: MetricsConfig = MetricsConfig()

    def __post_init__(self) -> None:
        if self.eval is not None and self.eval.control and not self.sft:
            raise ConfigError("a control goes on with a cold start, and there is no [[sft]] - at $.eval.control")
        if self.runtime.backend == "ray" and self.has_urls and self.runtime.ray.num_rollout_actors:
            raise ConfigError(
                "rollout actors ask generators of the cluster, and servers that are there already are asked by this "
                "process: with generator.urls set it to 0 - at $.runtime.ray.num_rollout_actors"
            )

    @property
    def has_urls(self) -> bool:
        """Whether the generators are servers that somebody else starts."""
        return isinstance(self.generator, SglangConfig) and bool(self.generator.urls)

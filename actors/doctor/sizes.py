"""Sizes: how many bytes each part of a run takes, computed from the shape of the model and from the layout.

Weights, gradients, optimiser, keys and values are exact. Activations are an estimate, which agrees with what autograd
keeps on a CPU to a tenth (a test compares them); logits are a bound. Symbols: h hidden, q and kv the widths of queries
and of keys, f feed-forward.
"""

from dataclasses import dataclass

from engine.inference.shape import ModelShape, parameter_shapes
from learner.config import LearnerConfig

GIB = 2**30
_PARAMETER_BYTES = {"bf16": 2, "float32": 4, "float64": 8}
_GRADIENT_BYTES = {"bf16": 4, "float32": 4, "float64": 8}
"""Megatron's buffer of main gradients."""
_OPTIMISER_BYTES = {"bf16": 12, "float32": 8, "float64": 16}
"""AdamW's two moments, and with bf16 a float32 master."""
_CHECKPOINT_BYTES = {"bf16": 12, "float32": 12, "float64": 24}
"""Master and moments of one number on disk: the weights are the masters, rounded."""
_WORK = {"bf16": 18, "float32": 20, "float64": 40}
"""Bytes of logits of one token and one entry of the vocabulary at the worst moment: themselves, their float32 copy,
the probabilities, and two temporaries of the entropy."""


@dataclass(frozen=True, kw_only=True)
class LearnerBytes:
    """What one rank of the learner takes, in its worst pipeline stage."""

    state: int
    """Weights, gradients and optimiser."""
    undo: int
    """The copy that several updates a step are undone from."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.state + self.undo + self.activations + self.logits


def size(num_bytes: float) -> str:
    """`12.3 GiB`; MiB or KiB where it is less than a tenth of one."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if num_bytes >= unit / 10:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes / 2**10:,.1f} KiB"


def stage_parameters(shape: ModelShape, *, stage: int, num_stages: int, tp_size: int) -> int:
    """Parameters of one rank of a stage: matrices are shared by its tensor-parallel ranks, norms are whole in each.

    The last stage of a pipeline holds a tied embedding a second time.
    """
    per_stage = max(shape.num_layers // num_stages, 1)
    total = 0
    for name, extents in parameter_shapes(shape).items():
        words = name.split(".")
        homes = {0} if "embed_tokens" in name else {num_stages - 1}
        if words[1] == "layers":
            homes = {int(words[2]) // per_stage}
        elif "embed_tokens" in name and shape.is_tied:
            homes = {0, num_stages - 1}
        if stage in homes:
            rows, columns = (*extents, 1)[:2]
            is_whole = name.endswith("norm.weight")
            total += rows * columns if is_whole else -(-rows * columns // tp_size)
    return total


def learner_bytes(shape: ModelShape, config: LearnerConfig, *, row_tokens: int) -> LearnerBytes:
    """The stage that takes most, for rows of `row_tokens`."""
    stages = range(config.pipeline_parallel)
    return max((_stage_bytes(shape, config, stage, row_tokens=row_tokens) for stage in stages), key=lambda b: b.total)


def _stage_bytes(shape: ModelShape, config: LearnerConfig, stage: int, *, row_tokens: int) -> LearnerBytes:
    tp, pp, dtype = config.tensor_parallel, config.pipeline_parallel, config.dtype
    own = stage_parameters(shape, stage=stage, num_stages=pp, tp_size=tp)
    replicas = config.data_parallel if config.distributed_optimizer else 1
    held = own * _PARAMETER_BYTES[dtype] + own * _OPTIMISER_BYTES[dtype] // replicas
    # One forward, one backward in turn: an earlier stage is ahead by as many rows as there are stages behind it.
    layers = max(shape.num_layers // pp, 1)
    activations = row_tokens * token_activations(shape, config, num_layers=layers) * (pp - stage)
    is_last = stage == pp - 1
    return LearnerBytes(
        state=held + own * _GRADIENT_BYTES[dtype],
        undo=held if config.num_minibatches > 1 else 0,
        activations=activations,
        logits=row_tokens * _WORK[dtype] * -(-shape.vocab_size // tp) if is_last else 0,
    )


def token_activations(shape: ModelShape, config: LearnerConfig, *, num_layers: int) -> int:
    """Bytes kept for the backward pass of one token in a row through some layers.

    A layer keeps 4 h (the inputs of both norms and of both matrix products behind them) and, of its own shard,
    4 q + 3 kv + 4 f: queries, keys and values before and behind the rotation, the attention's output and its copy, gate
    and up, silu, and their product; with norms of queries and keys, these once more.
    """
    tp = config.tensor_parallel
    h, q, kv, f = shape.hidden_size, shape.query_size, shape.kv_size, shape.intermediate_size
    shards = tp if config.sequence_parallel else 1
    inner = 4 * q + 3 * kv + 4 * f + (q + kv if shape.has_qk_norm else 0)
    whole = 4 * h // shards + inner // tp
    match config.recompute:
        case "none":
            kept = num_layers * whole
        case "selective":
            kept = num_layers * (whole - (2 * q + kv) // tp)
        case "full":
            kept = num_layers * h // shards + whole
    return kept * _PARAMETER_BYTES[config.dtype]


def checkpoint_bytes(shape: ModelShape, config: LearnerConfig) -> int:
    """One checkpoint, but for headers: every number once, whatever the layout, and what pads the vocabulary."""
    number = stage_parameters(shape, stage=0, num_stages=1, tp_size=1)
    padding = -shape.vocab_size % config.tensor_parallel * shape.hidden_size * (1 if shape.is_tied else 2)
    return _CHECKPOINT_BYTES[config.dtype] * (number + padding)


def kv_token_bytes(shape: ModelShape, *, tp_size: int = 1, dtype_bytes: int = 2) -> int:
    """Keys and values of one token on one rank; a rank has one head at least, so more ranks than heads repeat them."""
    return 2 * shape.num_layers * max(shape.num_kv_heads // tp_size, 1) * shape.head_dim * dtype_bytes


def published_bytes(shape: ModelShape, config: LearnerConfig) -> int:
    """One version of the weights as the learner publishes it."""
    number = stage_parameters(shape, stage=0, num_stages=1, tp_size=1)
    return number * _PARAMETER_BYTES[config.publish_dtype or config.dtype]

"""Whether a model divides into the ranks of a learner: known before a process is started or a byte allocated.

`arpo doctor`, `arpo train` and the learner itself ask here, so that none of them accepts what another one refuses.
"""

from collections.abc import Iterator

from engine.errors import ConfigError
from engine.inference.shape import ModelShape
from learner.config import LearnerConfig


def layout_problems(shape: ModelShape, config: LearnerConfig) -> Iterator[tuple[str, str]]:
    """What is wrong with a layout: the key of `LearnerConfig` that says so, and a sentence.

    A vocabulary always divides: it is padded to a multiple of the ranks (see `model.padded_vocab_size`).
    """
    tp, pp = config.tensor_parallel, config.pipeline_parallel
    for key, count, name, parts in (
        ("tensor_parallel", shape.num_heads, "attention heads", tp),
        ("tensor_parallel", shape.num_kv_heads, "key-value heads", tp),
        ("tensor_parallel", shape.intermediate_size, "feed-forward columns", tp),
        ("pipeline_parallel", shape.num_layers, "layers", pp),
    ):
        if count % parts:
            yield key, f"{count} {name} do not divide into {parts} parts"
    if config.sequence_parallel and tp == 1:
        yield "sequence_parallel", "shares what tensor-parallel ranks hold twice, and tensor_parallel is 1"
    if config.distributed_optimizer and config.dtype == "float64":
        yield "distributed_optimizer", "keeps float32 masters, which float64 weights would lose by"


def check_layout(shape: ModelShape, config: LearnerConfig, *, section: str = "learner") -> None:
    """Raise `ConfigError`, with the first problem and the path of its key, for a layout that cannot be built."""
    for key, text in layout_problems(shape, config):
        raise ConfigError(f"{text} - at $.{section}.{key}")

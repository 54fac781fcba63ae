"""Layouts: whether the model divides into the ranks of every learner, and into those of a server."""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, refused, warning
from engine.inference.shape import ModelShape
from learner.config import LearnerConfig
from learner.layout import layout_problems


def learners(case: Case) -> list[tuple[str, LearnerConfig]]:
    """Every learner of the run, with the path of its section: the cold start's stages, and RL's."""
    stages = [(f"sft.{number}.learner", stage.learner) for number, stage in enumerate(case.config.sft)]
    return [*stages, ("learner", case.config.learner)]


def check_layouts(case: Case) -> Iterator[Finding]:
    if case.shape is not None:
        for key, config in learners(case):
            yield from _learner(key, config, case.shape)
        yield from _server(case, case.shape)


def _learner(key: str, config: LearnerConfig, shape: ModelShape) -> Iterator[Finding]:
    tp, pp = config.tensor_parallel, config.pipeline_parallel
    problems = list(layout_problems(shape, config))
    for knob, text in problems:
        yield refused(f"{key}.{knob}", text)
    if config.distributed_optimizer and config.data_parallel == 1:
        yield warning(f"{key}.distributed_optimizer", "has no effect without data_parallel above 1")
    if not problems:
        padding = -shape.vocab_size % tp
        padded = f"; the vocabulary is padded by {padding}" if padding else ""
        ranks = "1 rank" if config.world_size == 1 else f"{config.world_size} ranks"
        yield ok(key, f"{ranks}: TP {tp} x PP {pp} x DP {config.data_parallel}{padded}")


def _server(case: Case, shape: ModelShape) -> Iterator[Finding]:
    """SGLang shares heads like the learner does, but repeats keys and values where there are more ranks than heads."""
    key, tp, pp = "generator.args", case.sglang.tp_size, case.sglang.pp_size
    for text in case.sglang.wrong:
        yield refused(key, text)
    if case.sglang.num_gpus == 1 or case.urls:
        return
    few, many = sorted((shape.num_kv_heads, tp))
    problems = {
        f"{shape.num_heads} attention heads do not divide into {tp} parts": shape.num_heads % tp,
        f"{shape.intermediate_size} feed-forward columns do not divide into {tp} parts": shape.intermediate_size % tp,
        f"{shape.num_kv_heads} key-value heads and {tp} parts: neither divides the other": many % few,
        f"{shape.num_layers} layers are fewer than {pp} stages": pp > shape.num_layers,
    }
    wrong = [text for text, is_wrong in problems.items() if is_wrong]
    for text in wrong:
        yield refused(key, text)
    if not wrong:
        yield ok(key, f"a server has {case.sglang.num_gpus} ranks: TP {tp} x PP {pp} x DP {case.sglang.dp_size}")

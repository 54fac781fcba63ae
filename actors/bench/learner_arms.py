"""One optimiser step by the learner, on trees or flat, in this process."""

from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from actors.bench.bench import Record
from engine.errors import ConfigError
from engine.inference.shape import ModelShape, read_shape
from engine.types import Batch
from learner.config import LearnerConfig
from learner.packing.flatten import flatten

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Of dense bf16 products a second, by a part of the device's name, as its maker states them."""


def check(device: Literal["cpu", "cuda"]) -> None:
    """Raise `ConfigError` where the learner would train on another device than this one."""
    import torch

    if (device == "cuda") != torch.cuda.is_available():
        raise ConfigError(
            "no CUDA device here" if device == "cuda" else "CUDA is here, so the learner trains on it: --device cuda"
        )


def train(
    batch: Batch, *, model_path: Path, packing: Literal["tree", "flat"], config: LearnerConfig, rounds: int
) -> Record:
    """Steps on one batch behind a warm-up. `step_s` is their median; tokens a second are those of the paths, which is
    what was asked for, and those that were computed. `mfu` where the device's peak is known."""
    from learner.megatron import MegatronLearner

    config = msgspec.structs.replace(config, packing=packing)
    with MegatronLearner(config, model_path=model_path, weights_dir=model_path.parent / "weights") as learner:
        learner.step(batch)
        reports = [learner.step(batch) for _ in range(rounds)]
    step_s = median(report.duration_s for report in reports)
    computed, of_paths = reports[0].num_computed_tokens, reports[0].num_path_tokens
    record = {
        "step_s": step_s,
        "path_tokens_per_s": of_paths / step_s,
        "computed_tokens_per_s": computed / step_s,
        "token_ratio": of_paths / computed,
    }
    peak = _peak_flops()
    if peak is not None:
        shape = read_shape(model_path)
        flops = sum(model_flops(shape, len(sequence.token_ids)) for sequence in flatten(batch))
        record["mfu"] = flops / step_s / peak
    return record


def _peak_flops() -> float | None:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def model_flops(shape: ModelShape, length: int) -> float:
    """Forward and backward of one sequence: 6 a parameter of a product and token, and causal attention (Chowdhery
    2204.02311, appendix B, with half of its attention, which is not causal)."""
    heads = shape.num_heads + 2 * shape.num_kv_heads
    of_layer = shape.hidden_size * shape.head_dim * (heads + shape.num_heads)
    of_layer += 3 * shape.hidden_size * shape.intermediate_size
    parameters = shape.num_layers * of_layer + shape.vocab_size * shape.hidden_size
    attention = 6 * shape.num_layers * shape.num_heads * shape.head_dim * length
    return (6.0 * parameters + attention) * length

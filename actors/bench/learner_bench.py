"""`arpo bench learner`: a training step on trees against one on their flattened paths, and against transformers.

| figure                 | what it is                                                                                |
|------------------------|-------------------------------------------------------------------------------------------|
| `speedup_tree_vs_flat` | of the `toolworld` groups: wall time of a step on flat paths by that on trees              |
| `token_ratio`          | tokens of all paths by those of the trees: the speed-up if every token cost the same       |
| `fraction_of_ratio`    | the one by the other                                                                      |
| `SHAPE_...`            | the same of other shapes: `forked` (16 leaves, three forks deep), `long` (leaves of 8,192) |
| `flat_vs_transformers` | of the `toolworld` groups: tokens a second of flat paths by those of plain transformers    |
| `path_tokens_per_s`    | of the `toolworld` groups on trees                                                        |
| `SHAPE_flat_mfu`       | on CUDA: model FLOPs a second, forward and backward, by the peak that the device is sold by |
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from actors.bench import learner_arms
from actors.bench.bench import Bench, Record, Records, median_of, median_ratio
from actors.bench.learner_trees import Workload, workloads
from engine.inference.tiny import make_tiny_model
from learner.config import LearnerConfig, MismatchGate

Device = Literal["cpu", "cuda"]
CPU = {"vocab_size": 1024, "hidden_size": 128, "num_layers": 4, "init_std": 0.05}
CUDA = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "num_layers": 28,
    "num_heads": 12,
    "num_kv_heads": 2,
    "head_dim": 128,
    "intermediate_size": 8960,
    "max_positions": 32_768,
}
"""Qwen2.5-1.5B's, with the norms of Qwen3."""


def benches(folder: Path, *, is_quick: bool, device: Device = "cpu") -> Sequence[Bench]:
    """On a CPU a model of 4 layers of 128 in float32; on CUDA one of 1.5 B parameters in bf16, without transformers.

    Raises `ConfigError` for a device that is not here.
    """
    learner_arms.check(device)
    sizes = CPU if device == "cpu" else CUDA
    model = folder / "model"
    make_tiny_model(model, kind="qwen3", **sizes)
    dtype = "float32" if device == "cpu" else "bf16"
    budget = 8192 if device == "cpu" else 16_384
    # No model said the behaviour log-probabilities of random tokens, so there is nothing to warn of.
    config = LearnerConfig(dtype=dtype, lr=1e-5, micro_batch_tokens=budget, gate=MismatchGate(kl_limit=100.0))
    # A row must hold paths of 8,192 that share a prefix.
    configs = {"long": msgspec.structs.replace(config, micro_batch_tokens=16_384)}
    shapes = workloads(is_quick=is_quick)
    arms: dict[str, Callable[[int], Record]] = {}
    for shape, workload in shapes.items():
        of_shape, rounds = configs.get(shape, config), 1 if shape == "long" else 3
        train = partial(_ours, workload, model=model, config=of_shape, rounds=rounds)
        arms |= {f"{shape}_tree": partial(train, packing="tree"), f"{shape}_flat": partial(train, packing="flat")}
    if device == "cpu":
        arms["toolworld_transformers"] = partial(_reference, shapes["toolworld"], model=model, config=config, rounds=3)
    return (
        Bench(
            name="learner",
            arms=arms,
            repetitions=1 if is_quick else 5,
            figures=partial(figures, shapes=tuple(shapes)),
        ),
    )


def _ours(
    workload: Workload, seed: int, *, model: Path, packing: Literal["tree", "flat"], config: LearnerConfig, rounds: int
) -> Record:
    return learner_arms.train(workload.batch(seed), model_path=model, packing=packing, config=config, rounds=rounds)


def _reference(workload: Workload, seed: int, *, model: Path, config: LearnerConfig, rounds: int) -> Record:
    from actors.bench import learner_reference  # loads transformers

    return learner_reference.train(
        workload.batch(seed),
        model_path=model,
        micro_batch_tokens=config.micro_batch_tokens,
        lr=config.lr,
        rounds=rounds,
    )


def figures(records: Records, *, shapes: Sequence[str]) -> dict[str, float]:
    """Medians, and medians of ratios of what ran side by side."""
    found: dict[str, float] = {}
    for shape in shapes:
        tree, flat = f"{shape}_tree", f"{shape}_flat"
        prefix = "" if shape == "toolworld" else f"{shape}_"
        speedup = median_ratio(records, flat, tree, of="step_s")
        token_ratio = median_of(records, tree, "token_ratio")
        found[f"{prefix}speedup_tree_vs_flat"] = speedup
        found[f"{prefix}token_ratio"] = token_ratio
        found[f"{prefix}fraction_of_ratio"] = speedup / token_ratio
        if "mfu" in records[flat][0]:
            found[f"{shape}_flat_mfu"] = median_of(records, flat, "mfu")
    if "toolworld_transformers" in records:
        found["flat_vs_transformers"] = median_ratio(
            records, "toolworld_flat", "toolworld_transformers", of="path_tokens_per_s"
        )
    found["path_tokens_per_s"] = median_of(records, "toolworld_tree", "path_tokens_per_s")
    return found

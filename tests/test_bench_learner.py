"""The learner's bench: its workloads have the shapes they claim, and its arms do the same work."""

from pathlib import Path

import numpy as np
import pytest

from actors.bench import learner_arms, learner_reference
from actors.bench.learner_bench import figures
from actors.bench.learner_trees import VOCAB_SIZE, Growing, Workload, even, workloads
from engine.errors import ConfigError
from engine.inference.shape import read_shape
from engine.inference.tiny import make_tiny_model
from learner.config import LearnerConfig
from learner.packing.batcher import num_unique_tokens
from learner.packing.flatten import flatten


def token_counts(workload: Workload) -> tuple[int, int, int]:
    """Trajectories, tokens of the trees, tokens of the paths, of one batch."""
    sequences = flatten(workload.batch(0))
    trees = [[s for s in sequences if s.sample == index] for index in range(max(s.sample for s in sequences) + 1)]
    return len(sequences), sum(map(num_unique_tokens, trees)), sum(len(s.token_ids) for s in sequences)


def test_workloads_have_the_shapes_they_claim() -> None:
    shapes = workloads(is_quick=False)
    count, of_trees, of_paths = token_counts(shapes["toolworld"])
    assert count == 12 * 16
    assert of_paths / count == 146
    assert 1.4 < of_paths / of_trees < 2.1
    assert token_counts(shapes["forked"]) == (3 * 16, 3 * 2240, 3 * 6656)
    assert token_counts(shapes["long"]) == (4, 3584 + 2 * 2048 + 4 * 2560, 4 * 8192)


def grow(tree: Growing, rng: np.random.Generator) -> None:
    even(tree, (2, 2), (9, 5))


def test_all_arms_train_the_same_tokens(tmp_path: Path) -> None:
    model = tmp_path / "model"
    make_tiny_model(model, kind="qwen3", vocab_size=VOCAB_SIZE, hidden_size=32, num_layers=1)
    batch = Workload(grow, prompt_tokens=6, num_groups=2).batch(0)
    config = LearnerConfig(dtype="float32", micro_batch_tokens=64)
    tree, flat = (
        learner_arms.train(batch, model_path=model, packing=packing, config=config, rounds=1)
        for packing in ("tree", "flat")
    )
    reference = learner_reference.train(batch, model_path=model, micro_batch_tokens=64, lr=1e-6, rounds=1)
    paths = 2 * 4 * 20
    for record in (tree, flat, reference):
        assert record["path_tokens_per_s"] * record["step_s"] == pytest.approx(paths)
    assert tree["token_ratio"] == pytest.approx(20 * 4 / (6 + 2 * 9 + 4 * 5))
    assert flat["token_ratio"] == 1


def test_figures_are_ratios_of_neighbours() -> None:
    records = {
        "toolworld_tree": [{"step_s": 1.0, "token_ratio": 2.0, "path_tokens_per_s": 10.0}],
        "toolworld_flat": [{"step_s": 1.8, "token_ratio": 1.0, "path_tokens_per_s": 5.0, "mfu": 0.4}],
        "toolworld_transformers": [{"step_s": 2.0, "path_tokens_per_s": 4.0}],
    }
    found = figures(records, shapes=("toolworld",))
    assert found == {
        "speedup_tree_vs_flat": 1.8,
        "token_ratio": 2.0,
        "fraction_of_ratio": 0.9,
        "toolworld_flat_mfu": 0.4,
        "flat_vs_transformers": 1.25,
        "path_tokens_per_s": 10.0,
    }


def test_model_flops_are_six_a_parameter_and_token_and_causal_attention(tmp_path: Path) -> None:
    make_tiny_model(
        tmp_path,
        kind="qwen3",
        vocab_size=10,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        intermediate_size=16,
    )
    of_layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # query, key and value, output, the feed-forward layer
    products = 6 * (2 * of_layer + 10 * 8) * 3
    attention = 2 * 6 * 2 * 4 * 3 * 3
    assert learner_arms.model_flops(read_shape(tmp_path), 3) == products + attention


def test_a_device_that_is_not_here_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no CUDA device here"):
        learner_arms.check("cuda")

"""What needs a GPU: run by `make test-gpu`, on a machine that has one. On any other it fails, so that nobody takes a
suite that did nothing for one that passed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig
from learner.mcore_cpu import cuda_means_cpu
from learner.network.attention import attention
from learner.packing.tree_pack import Structure, place
from tests.learner_models import VOCAB, make_model, random_batch, reference_logprobs
from tests.learner_trees import make_sample, sequences_of

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device() -> torch.device:
    assert torch.cuda.is_available(), "these tests need a CUDA device"
    return torch.device("cuda")


def heads(structure: Structure, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(structure.num_tokens, count, 64) for count in (8, 2, 2, 8)]
    return [torch.randn(s, generator=generator, device=device, dtype=dtype).requires_grad_() for s in shapes]


def large_forest(seed: int = 0) -> Structure:
    """Several blocks of 128 long, with forks inside of blocks."""
    sample = make_sample(np.random.default_rng(seed), [0, 1, 1, 0, 4, 4, 6], [300, 90, 210, 130, 70, 64, 256], vocab=9)
    return Structure.joined([place(sequences_of(sample)).structure, Structure.chain(77)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 4e-2)])
def test_flex_attention_equals_the_dense_one_with_its_gradients(
    dtype: torch.dtype, tolerance: float, device: torch.device
) -> None:
    """float32 products of compiled kernels round to tf32 at most: 10 bits."""
    structure = large_forest()
    *inputs, direction = heads(structure, device, dtype)
    results = [attention(structure, kind=kind, device=device)(*inputs, scale=None) for kind in ("flex", "dense")]
    grads = [torch.autograd.grad(r, inputs, direction.detach()) for r in results]
    for ours, reference in zip((results[0], *grads[0]), (results[1], *grads[1]), strict=True):
        assert float((ours - reference).abs().max()) <= tolerance * float(reference.abs().max())


def test_flash_attention_equals_the_dense_one_on_rows_without_a_fork(device: torch.device) -> None:
    pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    structure = Structure.joined([Structure.chain(n) for n in (300, 17, 129)])
    *inputs, _ = heads(structure, device, torch.bfloat16)
    flash, dense = (attention(structure, kind=k, device=device)(*inputs, scale=None) for k in ("flash", "dense"))
    assert float((flash - dense).abs().max()) <= 4e-2 * float(dense.abs().max())


def test_the_cpu_adapter_does_nothing_here() -> None:
    names = [torch.zeros, torch.tensor, torch.cuda.current_device]
    with cuda_means_cpu():
        assert [torch.zeros, torch.tensor, torch.cuda.current_device] == names
        assert torch.zeros(1, device="cuda").device.type == "cuda"


def test_logprobs_in_float32_equal_transformers(folder: Path, open_learner: Any) -> None:
    model = make_model(folder)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, VOCAB, n).astype(np.int32) for n in (5, 40, 90)]
    learner = open_learner(LearnerConfig(dtype="float32", attention="dense"))
    for token_ids, ours in zip(sequences, learner.logprobs(sequences), strict=True):
        np.testing.assert_allclose(ours[1:], reference_logprobs(model, token_ids).detach().numpy(), atol=1e-3)


@pytest.mark.parametrize("distributed", [False, True])
def test_bf16_steps_train_on_trees_with_flex_attention(distributed: bool, folder: Path, open_learner: Any) -> None:
    make_model(folder)
    config = LearnerConfig(lr=1e-3, micro_batch_tokens=256, distributed_optimizer=distributed)
    learner = open_learner(config)
    reports = [learner.step(random_batch(3)) for _ in range(5)]
    assert all(np.isfinite(r.loss) and r.grad_norm > 0 for r in reports)
    assert reports[0].num_computed_tokens < reports[0].num_path_tokens


def test_trees_and_paths_have_the_same_gradient(folder: Path, open_learner: Any) -> None:
    make_model(folder)
    learner = open_learner(LearnerConfig(dtype="float32"))
    tree, flat = (
        learner.gradients(random_batch(3), LearnerConfig(dtype="float32", packing=packing))
        for packing in ("tree", "flat")
    )
    largest = max(float(g.abs().max()) for g in flat.values())
    assert max(float((tree[n] - flat[n]).abs().max()) for n in flat) <= 1e-2 * largest  # tf32

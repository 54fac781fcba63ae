"""The model's pointwise operations against torch's own and the reference implementation, with their gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from learner.network.attention import Rotation
from learner.network.pointwise import rms_norm, swiglu

SEEDS = st.integers(0, 2**31)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def assert_same(ours: Tensor, expected: Tensor, *inputs: Tensor, **tolerance: float) -> None:
    """Equal values, and equal gradients of their squares' sum."""
    torch.testing.assert_close(ours, expected, **tolerance)
    for mine, reference in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, **tolerance)


@given(SEEDS, st.integers(1, 5), st.integers(1, 3), st.integers(1, 20), st.sampled_from([0.0, 1e-6, 1.0]))
def test_rms_norm_equals_torchs_with_its_gradients(seed: int, rows: int, heads: int, size: int, eps: float) -> None:
    # a slice, as Megatron cuts queries out of a wider tensor
    hidden = randn(seed, rows, heads, size + 3)[..., 1 : size + 1].requires_grad_()
    weight = randn(seed + 1, size).requires_grad_()
    expected = functional.rms_norm(hidden, (size,), weight, eps)
    assert_same(rms_norm(hidden, weight, eps=eps), expected, hidden, weight)


def test_rms_norm_keeps_the_dtype_and_computes_bf16_in_float32() -> None:
    hidden = randn(0, 4, 64, dtype=torch.bfloat16).requires_grad_()
    weight = randn(1, 64, dtype=torch.bfloat16).requires_grad_()
    out = rms_norm(hidden, weight, eps=1e-6)
    exact = functional.rms_norm(hidden.float(), (64,), weight.float(), 1e-6)
    assert torch.equal(out, exact.bfloat16())
    grads = torch.autograd.grad(out.sum(), (hidden, weight))
    for grad, expected in zip(grads, torch.autograd.grad(exact.sum(), (hidden, weight)), strict=True):
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad, expected, atol=2e-2, rtol=2e-2)


def test_the_examples_of_the_docstrings_hold() -> None:
    normed = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 10.0]), eps=0.0)
    np.testing.assert_allclose(normed, [0.849, 11.31], atol=5e-3)
    quarter = Rotation.of(torch.tensor([1]), torch.tensor([np.pi / 2]))
    np.testing.assert_allclose(quarter.apply(torch.tensor([[[1.0, 0.0]]])), [[[0.0, 1.0]]], atol=1e-7)


@given(SEEDS, st.integers(1, 5), st.integers(1, 9))
def test_swiglu_equals_its_formula_with_its_gradient(seed: int, rows: int, size: int) -> None:
    gate_up = (4 * randn(seed, rows, 2 * size)).requires_grad_()
    gate, up = gate_up.chunk(2, dim=-1)
    assert_same(swiglu(gate_up), gate * torch.sigmoid(gate) * up, gate_up)


@given(SEEDS, st.lists(st.integers(0, 500), min_size=1, max_size=6), st.integers(1, 8))
def test_rotation_equals_the_reference_with_its_gradient(seed: int, depths: list[int], half: int) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    frequencies = 0.1 ** torch.arange(half, dtype=torch.float32)
    rotation = Rotation.of(torch.tensor(depths), frequencies)
    angles = torch.outer(torch.tensor(depths, dtype=torch.float32), frequencies).repeat(1, 2)
    heads = randn(seed, len(depths), 3, 2 * half).requires_grad_()
    expected, _ = apply_rotary_pos_emb(heads, heads, angles.cos().double(), angles.sin().double())
    assert_same(rotation.apply(heads), expected, heads)


@given(SEEDS, st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_scores_depend_on_the_distance_of_two_depths_only(seed: int, first: int, second: int, shift: int) -> None:
    frequencies = torch.tensor([1.0, 0.1])
    query, key = randn(seed, 1, 1, 4), randn(seed + 1, 1, 1, 4)

    def score(at: int, other: int) -> Tensor:
        turned = [Rotation.of(torch.tensor([d]), frequencies).apply(t) for d, t in ((at, query), (other, key))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(first, second), score(first + shift, second + shift), atol=1e-4, rtol=0)


@pytest.mark.parametrize("operation", [swiglu, lambda t: rms_norm(t, torch.ones(8), eps=1e-6)])
def test_equal_input_gives_equal_bits(operation: Any) -> None:
    values = randn(3, 50, 8, dtype=torch.float32).requires_grad_()
    runs = [(out := operation(values), torch.autograd.grad(out.square().sum(), values)[0]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

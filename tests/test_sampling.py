"""Sampling: coins that depend on nothing but seed and position, and the distribution they draw from."""

import numpy as np
import pytest
import torch

from engine.inference.native import load_native
from engine.inference.ops import NativeOps, Ops, Sampled, TorchOps
from engine.inference.sampling import SamplingRows, sample, uniforms

VOCAB_SIZE = 200
"""Several chunks of the kernel's 64."""


@pytest.fixture(params=["native", "torch"])
def ops(request: pytest.FixtureRequest) -> Ops:
    if request.param == "torch":
        return TorchOps()
    library = load_native()
    if library is None:
        pytest.skip("no C compiler")
    return NativeOps(library)


def draw(
    logits: torch.Tensor, *, ops: Ops, temperature: float = 1.0, top_p: float = 1.0, top_k: int = -1, seed: int = 0
) -> Sampled:
    """One token from each row, at positions 0, 1, 2, ..."""
    count = logits.shape[0]
    rows = SamplingRows(
        np.full(count, temperature, dtype=np.float32),
        np.full(count, top_p, dtype=np.float32),
        np.full(count, top_k, dtype=np.int32),
        np.full(count, seed, dtype=np.uint64),
        np.arange(count, dtype=np.int32),
    )
    return sample(logits.clone(), rows, ops=ops)


def some_logits(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def test_a_coin_depends_on_seed_and_position_alone() -> None:
    seeds, positions = np.array([3, 3, 4], dtype=np.uint64), np.array([5, 6, 5], dtype=np.int32)
    together = uniforms(seeds, positions)
    assert len(set(together.tolist())) == 3
    for i in range(3):
        assert uniforms(seeds[i : i + 1], positions[i : i + 1])[0] == together[i]


@pytest.mark.parametrize("by", ["seed", "position"])
def test_coins_are_uniform_and_neighbours_are_independent(by: str) -> None:
    count = 40_000
    run = np.arange(count)
    seeds = run if by == "seed" else np.full(count, 7)
    positions = run if by == "position" else np.full(count, 7)
    coins = uniforms(seeds.astype(np.uint64), positions.astype(np.int32))
    assert coins.min() >= 0
    assert coins.max() < 1
    histogram = np.histogram(coins, bins=20, range=(0, 1))[0]
    assert ((histogram - count / 20) ** 2 / (count / 20)).sum() < 43.8  # chi square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(coins[:-1], coins[1:])[0, 1]) < 0.02


def test_frequencies_are_those_of_the_softmax(ops: Ops) -> None:
    count = 20_000
    logits = some_logits(1).expand(count, -1) / 4
    got = draw(logits, ops=ops, temperature=0.7)
    wanted = torch.softmax(logits[0] / 0.7, dim=-1).numpy()
    observed = np.bincount(got.token_ids, minlength=VOCAB_SIZE)
    assert ((observed - count * wanted) ** 2 / (count * wanted)).sum() < 267.5  # 199 degrees of freedom, p = 0.001


def test_log_probability_and_entropy_are_exact(ops: Ops) -> None:
    logits = some_logits(64)
    got = draw(logits, ops=ops, temperature=1.7)
    wanted = torch.log_softmax(logits.double() / 1.7, dim=-1)
    chosen = wanted[torch.arange(64), torch.from_numpy(got.token_ids.astype(np.int64))]
    np.testing.assert_allclose(got.logprobs, chosen.numpy(), atol=2e-6)
    np.testing.assert_allclose(got.entropies, -(wanted.exp() * wanted).sum(-1).numpy(), atol=2e-6)


def test_a_peaked_distribution_has_finite_numbers_and_no_impossible_token(ops: Ops) -> None:
    logits = torch.full((200, VOCAB_SIZE), -200.0)
    logits[:, 11] = 200.0
    got = draw(logits, ops=ops)
    assert set(got.token_ids.tolist()) == {11}
    np.testing.assert_allclose(got.logprobs, 0.0, atol=1e-7)
    np.testing.assert_allclose(got.entropies, 0.0, atol=1e-7)


def test_greedy_takes_the_likeliest_and_reports_temperature_one(ops: Ops) -> None:
    logits = some_logits(50)
    got = draw(logits, ops=ops, temperature=0.0, top_k=3, top_p=0.5)
    wanted = torch.log_softmax(logits, dim=-1)
    assert got.token_ids.tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(got.logprobs, wanted.max(-1).values.numpy(), atol=2e-6)
    np.testing.assert_allclose(got.entropies, -(wanted.exp() * wanted).sum(-1).numpy(), atol=2e-6)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 4), (0.6, -1), (0.5, 6)])
def test_truncation_renormalises_over_what_it_keeps(ops: Ops, top_p: float, top_k: int) -> None:
    logits = some_logits(1).expand(2000, -1)
    got = draw(logits, ops=ops, temperature=1.3, top_p=top_p, top_k=top_k)
    probabilities = torch.softmax(logits[0].double() / 1.3, dim=-1)
    order = probabilities.argsort(descending=True)[: top_k if top_k > 0 else None]
    ranked = probabilities[order] / probabilities[order].sum()
    kept = int((ranked.cumsum(0) - ranked < top_p).sum())
    wanted = dict(zip(order[:kept].tolist(), (ranked[:kept] / ranked[:kept].sum()).tolist(), strict=True))
    assert set(got.token_ids.tolist()) == set(wanted)
    np.testing.assert_allclose(got.logprobs, np.log([wanted[t] for t in got.token_ids.tolist()]), atol=3e-6)
    np.testing.assert_allclose(got.entropies, -sum(p * np.log(p) for p in wanted.values()), atol=3e-6)


def test_both_implementations_draw_the_same_tokens() -> None:
    library = load_native()
    if library is None:
        pytest.skip("no C compiler")
    logits = some_logits(500)
    ours, reference = draw(logits, ops=NativeOps(library), seed=5), draw(logits, ops=TorchOps(), seed=5)
    assert ours.token_ids.tolist() == reference.token_ids.tolist()


def test_a_row_that_is_not_a_number_shows_in_its_entropy(ops: Ops) -> None:
    logits = some_logits(3)
    logits[1, 7] = torch.nan
    assert np.isfinite(draw(logits, ops=ops).entropies).tolist() == [True, False, True]

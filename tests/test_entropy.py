"""Entropy from the most probable tokens: the bounds hold the exact value, and close when everything is seen."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from engine.entropy import Interval, Signal, entropy_bounds, probe_mean


@st.composite
def distributions(draw: st.DrawFn) -> np.ndarray:
    """Probabilities over 2 to 200 tokens, from nearly certain to uniform, some of them zero."""
    size = draw(st.integers(2, 200))
    scale = draw(st.sampled_from([0.0, 0.5, 2.0, 8.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=size) * scale
    weights = np.exp(logits - logits.max())
    weights[rng.random(size) < draw(st.sampled_from([0.0, 0.5]))] = 0.0
    weights[0] += weights.sum() == 0
    return weights / weights.sum()


def bounds_of(top_logprobs: np.ndarray, *, vocab_size: int) -> Interval:
    """Of one distribution, looked at in the middle of others."""
    others = np.log(np.full((1, top_logprobs.size), 1 / vocab_size, top_logprobs.dtype))
    low, high = entropy_bounds(np.concatenate([others, top_logprobs[None], others]), vocab_size=vocab_size)
    return Interval(float(low[1]), float(high[1]))


def exact(probabilities: np.ndarray) -> float:
    seen = probabilities[probabilities > 0]
    return float(-(seen * np.log(seen)).sum())


def top(probabilities: np.ndarray, n: int) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.sort(probabilities)[::-1][:n])


@given(probabilities=distributions(), share=st.floats(0, 1))
@settings(max_examples=300)
def test_bounds_hold_the_exact_entropy_for_any_number_of_seen_tokens(probabilities: np.ndarray, share: float) -> None:
    n = 1 + round(share * (probabilities.size - 1))
    for dtype, slack in ((np.float64, 1e-7), (np.float32, 2e-4)):
        bounds = bounds_of(top(probabilities, n).astype(dtype), vocab_size=probabilities.size)
        assert bounds.low >= -slack
        assert bounds.low - slack <= exact(probabilities) <= bounds.high + slack
        assert bounds.high <= np.log(probabilities.size) + slack


@given(probabilities=distributions())
def test_bounds_only_close_when_more_is_seen_and_meet_when_all_is(probabilities: np.ndarray) -> None:
    size = probabilities.size
    sizes = sorted({1, (size + 1) // 2, size})
    widths = [bounds_of(top(probabilities, n), vocab_size=size) for n in sizes]
    for wide, narrow in pairwise(widths):
        assert narrow.high <= wide.high + 1e-7
        assert narrow.low >= wide.low - 1e-7
    assert widths[-1].low == widths[-1].high == pytest.approx(exact(probabilities), abs=1e-7)


def test_bounds_on_numbers_worked_by_hand() -> None:
    bounds = bounds_of(np.log(np.array([0.5, 0.25], np.float32)), vocab_size=4)
    assert bounds.low == pytest.approx(0.5 * np.log(2) + 0.25 * np.log(4) + 0.25 * np.log(4), abs=1e-6)
    assert bounds.high == pytest.approx(0.5 * np.log(2) + 0.25 * np.log(4) + 0.25 * np.log(8), abs=1e-6)
    assert bounds.middle == pytest.approx((bounds.low + bounds.high) / 2)
    certain = bounds_of(np.array([0.0, -np.inf], np.float32), vocab_size=9)
    assert certain == Interval(0.0, 0.0)


def test_probe_is_a_mean_so_that_a_short_segment_is_not_taken_for_a_certain_one() -> None:
    low, high = np.array([1.0, 3.0], np.float32), np.array([2.0, 4.0], np.float32)
    assert probe_mean(low, high) == Interval(2.0, 3.0)
    assert probe_mean(low[:1], high[:1]) == Interval(1.0, 2.0)
    assert probe_mean(low[:0], high[:0]) == Interval(0.0, 0.0)


@given(entropy=st.floats(0, 1), baseline=st.floats(0, 1), log_vocab=st.floats(0.7, 12))
def test_delta_is_the_difference_as_a_share_of_the_largest_entropy(
    entropy: float, baseline: float, log_vocab: float
) -> None:
    shape = {"num_probed": 20, "num_baseline": 20, "coin": 0.0}
    signal = Signal(entropy=entropy * log_vocab, baseline=baseline * log_vocab, log_vocab=log_vocab, **shape)
    assert -1 <= signal.delta <= 1
    assert signal.delta == pytest.approx(entropy - baseline, abs=1e-9)

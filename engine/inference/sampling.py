"""Sampling by counter: the coin of a token is a hash of (request seed, position), so no batch can change a sample.

The coin u in [0, 1) picks the first token, in vocabulary order, at which the cumulative probability exceeds u. Where
`top_k` or `top_p` truncate, log-probabilities and entropies are those of the distribution that was sampled from:
renormalised over the kept tokens; untruncated they are `log_softmax(logits / temperature)` over the whole vocabulary.
Greedy rows (temperature 0) take the most likely token and report the distribution of temperature 1, untruncated.

Axes: M rows to sample, V vocabulary.
"""

# torch's stubs leave parts of many signatures open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.inference.ops import Ops, Sampled
from engine.types import Float32, Int32

UInt64 = NDArray[np.uint64]
_HIDDEN = -1e30
"""A logit whose probability is exactly zero, and finite, so that zero times it is zero."""


class SamplingRows(NamedTuple):
    """How to sample each row, [M] each."""

    temperatures: Float32
    """0 is greedy."""
    top_ps: Float32
    top_ks: Int32
    """0 or less keeps the whole vocabulary."""
    seeds: UInt64
    positions: Int32
    """Index of the sampled token in its sequence, prompt included."""


def uniforms(seeds: UInt64, positions: Int32) -> NDArray[np.float64]:
    """A number in [0, 1), a multiple of 2^-40, for each (seed, position).

    Two rounds of SplitMix64 (Steele et al. 2014). Forty bits, so that u times a total in float64 stays below it.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(seeds) + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(24)).astype(np.float64) * 2.0**-40


def _mix(x: UInt64) -> UInt64:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@torch.inference_mode()
def sample(logits: Tensor, rows: SamplingRows, *, ops: Ops) -> Sampled:
    """Draw one token from each row of float32 `logits` [M, V], which are overwritten."""
    temperatures = rows.temperatures
    is_truncated = ((rows.top_ps < 1) | (rows.top_ks > 0)) & (temperatures > 0)
    if is_truncated.any():
        index = torch.from_numpy(np.flatnonzero(is_truncated)).to(logits.device)
        scaled = logits[index] / torch.from_numpy(temperatures[is_truncated])[:, None].to(logits.device)
        logits[index] = _truncate(scaled, rows.top_ps[is_truncated], rows.top_ks[is_truncated])
        temperatures = np.where(is_truncated, np.float32(1), temperatures)
    return ops.draw(logits, temperatures, uniforms(rows.seeds, rows.positions))


def _truncate(logits: Tensor, top_ps: Float32, top_ks: Int32) -> Tensor:
    """Keep the `top_k` likeliest tokens, then the fewest of them that hold `top_p` of what is left; hide the others."""
    vocab_size = logits.shape[1]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    ks = torch.from_numpy(np.where(top_ks > 0, top_ks, vocab_size)).to(logits.device)[:, None]
    ordered = ordered.masked_fill(torch.arange(vocab_size, device=logits.device) >= ks, _HIDDEN)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1, dtype=torch.float64) - probabilities
    ps = torch.from_numpy(top_ps).to(logits.device)[:, None]
    outside = (before >= ps) & (ps < 1)
    outside[:, 0] = False
    ordered = ordered.masked_fill(outside, _HIDDEN)
    return torch.empty_like(logits).scatter_(1, order, ordered)

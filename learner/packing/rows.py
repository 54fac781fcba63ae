"""Packed rows: what goes through the model at once, and the trained tokens of its trajectories.

The model sees each token of a tree once. Losses, corrections and statistics see *paths*: a token that several
trajectories share has one entry for each of them, with that trajectory's advantage and weight, so that whatever they
compute is what they would compute on the flattened trajectories. All trained tokens of a trajectory are in one row.

Plain numpy. Axes: T tokens of a row, N of them scored, E trained tokens of its trajectories (E >= N), trajectory by
trajectory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.types import Float32, Int32
from learner.packing.flatten import FlatSequence
from learner.packing.tree_pack import Structure, place


@dataclass(frozen=True, kw_only=True)
class Row:
    """Trees packed one after another; a trajectory alone is a tree without a fork."""

    token_ids: Int32
    """[T]"""
    structure: Structure
    members: tuple[int, ...]
    """Which sequences they are."""
    counts: tuple[int, ...]
    """Trained tokens of each member; they add up to E."""
    predictors: Int32
    """[N] index in the row of the token before the scored one on its path."""
    targets: Int32
    """[N] the scored tokens."""
    tokens: Int32
    """[E] which of the N each entry is."""
    positions: Int32
    """[E] place in the trajectory."""
    behaviour: Float32
    """[E]"""
    versions: Int32
    """[E]"""
    advantages: Float32
    """[E]"""
    weights: NDArray[np.float64]
    """[E] what the normalisation gives each entry's loss; they hold the whole mini-batch's denominator."""

    @property
    def leaves(self) -> Int32:
        """[E] the trajectory of each entry, counted within the row."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)

    def split(self, values: NDArray[np.floating]) -> Iterator[tuple[int, Int32, NDArray[np.floating]]]:
        """[E] values as (sequence, positions of its trained tokens, their values)."""
        stops = np.cumsum(self.counts)
        for member, stop, count in zip(self.members, stops.tolist(), self.counts, strict=True):
            yield member, self.positions[stop - count : stop], values[stop - count : stop]


def make_row(sequences: Sequence[FlatSequence], trees: Sequence[Sequence[int]], weights: Sequence[float]) -> Row:
    """The row of these trees, each given by the indices of its trajectories. `weights` has one number for every
    sequence: that of each of its trained tokens."""
    placements = [place([sequences[i] for i in tree]) for tree in trees]
    structure = Structure.joined([p.structure for p in placements])
    offsets = np.cumsum([0, *(p.structure.num_tokens for p in placements)]).tolist()
    members = [i for tree in trees for i in tree]
    chosen = [sequences[i] for i in members]
    places = [p + o for placed, o in zip(placements, offsets, strict=False) for p in placed.positions]
    trained = [np.flatnonzero(s.is_trained) for s in chosen]

    token_ids = np.zeros(structure.num_tokens, np.int32)
    previous = np.full(structure.num_tokens, -1, np.int32)
    for s, p in zip(chosen, places, strict=True):
        token_ids[p] = s.token_ids
        previous[p[1:]] = p[:-1]
    rows_E = joined([p[t] for p, t in zip(places, trained, strict=True)], np.int32)
    scored_N, tokens_E = np.unique(rows_E, return_inverse=True)
    counts = tuple(len(t) for t in trained)
    return Row(
        token_ids=token_ids,
        structure=structure,
        members=tuple(members),
        counts=counts,
        predictors=previous[scored_N],
        targets=token_ids[scored_N],
        tokens=tokens_E.astype(np.int32),
        positions=joined(trained, np.int32),
        behaviour=joined([s.behaviour[t] for s, t in zip(chosen, trained, strict=True)], np.float32),
        versions=joined([s.versions[t] for s, t in zip(chosen, trained, strict=True)], np.int32),
        advantages=joined([s.advantages[t] for s, t in zip(chosen, trained, strict=True)], np.float32),
        weights=np.repeat(np.array([weights[i] for i in members], np.float64), counts),
    )


def joined(pieces: Sequence[NDArray[np.generic]], dtype: type) -> NDArray[np.generic]:
    """The pieces one after another, also where there are none."""
    return np.concatenate([np.zeros(0, dtype), *pieces]).astype(dtype, copy=False)


def padded(row: Row, length: int) -> Row:
    """The row with a last, untrained sequence of token 0 that makes it `length` long; longer rows stay as they are."""
    missing = length - len(row.token_ids)
    if missing <= 0:
        return row
    return replace(
        row,
        token_ids=np.concatenate((row.token_ids, np.zeros(missing, np.int32))),
        structure=Structure.joined([row.structure, Structure.chain(missing)]),
    )

"""Trees in rows: who sees whom, what is cut where, and that nothing is lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import Sample
from learner.network.attention import Attend, ancestor_mask, attention
from learner.packing.batcher import num_unique_tokens, pack
from learner.packing.flatten import FlatSequence
from learner.packing.rows import padded
from learner.packing.tree_pack import Structure, divide, place
from tests.learner_trees import make_sample, samples, sequences_of


def ancestors(sequences: list[FlatSequence], positions: tuple[np.ndarray, ...], length: int) -> np.ndarray:
    """[T, T] who is before whom on a path, or itself, written down path by path."""
    sees = np.zeros((length, length), bool)
    for own in positions:
        for i, query in enumerate(own):
            sees[query, own[: i + 1]] = True
    return sees


def covered(structure: Structure) -> np.ndarray:
    """[T, T] in how many chains and rectangles each pair is."""
    counts = np.zeros((structure.num_tokens,) * 2, int)
    for start, stop in structure.chains:
        counts[start:stop, start:stop] += np.tri(stop - start, dtype=int)
    for a, b, c, d in structure.rectangles:
        counts[a:b, c:d] += 1
    return counts


@given(samples())
def test_each_token_sees_its_ancestors_and_itself_once_and_nothing_else(sample: Sample) -> None:
    sequences = sequences_of(sample)
    if not sequences:
        return
    structure, positions = place(sequences)
    expected = ancestors(sequences, positions, structure.num_tokens)
    np.testing.assert_array_equal(ancestor_mask(structure, torch.device("cpu")).numpy(), expected)
    np.testing.assert_array_equal(covered(structure), expected.astype(int))
    np.testing.assert_array_equal(structure.depths, expected.sum(axis=1) - 1)
    num_nodes = {n: length for s in sequences for n, length in zip(s.nodes, s.node_lengths, strict=True)}
    assert structure.num_tokens == sum(num_nodes.values()) == num_unique_tokens(sequences)
    assert len(structure.chains) <= len(sequences)
    assert len(structure.rectangles) < max(len(sequences), 1)


def test_a_fork_is_two_chains_and_a_rectangle() -> None:
    sample = make_sample(np.random.default_rng(1), [0, 1, 1], [2, 4, 1], vocab=9)
    structure, positions = place(sequences_of(sample))
    assert structure.depths.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 5]
    assert structure.ends.tolist() == [10] * 5 + [9] * 4 + [10]
    assert structure.chains == ((0, 9), (9, 10))
    assert structure.rectangles == ((9, 10, 0, 5),)
    assert positions[1].tolist() == [0, 1, 2, 3, 4, 9]


@given(samples(max_nodes=16), st.integers(1, 40))
def test_a_tree_is_cut_into_few_parts_of_whole_paths_within_the_budget(sample: Sample, budget: int) -> None:
    sequences = sequences_of(sample)
    if not sequences:
        return
    parts = divide(sequences, budget=budget)
    assert sorted(i for part in parts for i in part) == list(range(len(sequences)))
    for part in parts:
        own = [sequences[i] for i in part]
        assert num_unique_tokens(own) <= budget or len(part) == 1
    if num_unique_tokens(sequences) <= budget:
        assert len(parts) == 1


@given(st.lists(samples(), min_size=1, max_size=3), st.integers(1, 60), st.integers(1, 3), st.integers(0, 50))
def test_a_row_scores_each_trained_token_behind_the_one_before_it_on_its_path(
    trees: list[Sample], budget: int, multiple: int, length: int
) -> None:
    sequences = [s for tree in trees for s in sequences_of(tree)]
    offsets = np.repeat(np.arange(len(trees)), [len(sequences_of(t)) for t in trees])
    sequences = [FlatSequence(**{**vars(s), "sample": int(k)}) for s, k in zip(sequences, offsets, strict=True)]
    weights = [float(i) for i in range(len(sequences))]
    rows = [padded(r, length) for r in pack(sequences, budget=budget, weights=weights, multiple=multiple)]
    assert len(rows) % multiple == 0
    assert sorted(m for r in rows for m in r.members) == list(range(len(sequences)))
    for row in rows:
        structure = row.structure
        assert structure.num_tokens == len(row.token_ids) >= 1
        assert sum(stop - start for start, stop in structure.chains) == structure.num_tokens
        sees = ancestor_mask(structure, torch.device("cpu")).numpy()
        for leaf, (member, positions, entries) in enumerate(row.split(np.arange(len(row.tokens), dtype=np.float64))):
            sequence, index = sequences[member], entries.astype(int)
            assert positions.tolist() == np.flatnonzero(sequence.is_trained).tolist()
            assert row.targets[row.tokens[index]].tolist() == sequence.token_ids[positions].tolist()
            for name in ("behaviour", "versions", "advantages"):
                assert getattr(row, name)[index].tolist() == getattr(sequence, name)[positions].tolist()
            assert (row.weights[index] == member).all()
            assert (row.leaves[index] == leaf).all()
            for position, entry in zip(positions, index, strict=True):
                before = row.predictors[row.tokens[entry]]
                assert structure.depths[before] == position - 1
                assert row.token_ids[sees[before]].tolist() == sequence.token_ids[:position].tolist()


def test_trajectories_that_share_next_to_nothing_are_packed_flat() -> None:
    rng = np.random.default_rng(0)
    shares_little = sequences_of(make_sample(rng, [0, 0], [100, 100], vocab=9))
    shares_much = sequences_of(make_sample(rng, [0, 1, 1], [100, 10, 10], vocab=9))
    assert len(pack(shares_little, budget=10**4)[0].token_ids) == 206
    assert len(pack(shares_much, budget=10**4)[0].token_ids) == 123
    assert len(pack(shares_much, budget=10**4, as_trees=False)[0].token_ids) == 226


def attend_by(structure: Structure, kind: str) -> Attend:
    return attention(structure, kind=kind, device=torch.device("cpu"))  # type: ignore[arg-type]


def forest(sample: Sample) -> Structure:
    """The sample's tree, and a sequence behind it."""
    sequences = sequences_of(sample)
    return Structure.joined([*([place(sequences).structure] if sequences else []), Structure.chain(3)])


def random_heads(structure: Structure, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    length = structure.num_tokens
    return [torch.randn(length, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2, 4)]


@given(samples(), st.sampled_from([None, 0.3]), st.integers(0, 2**31))
def test_attention_by_chains_equals_the_dense_one_with_its_gradients(
    sample: Sample, scale: float | None, seed: int
) -> None:
    structure = forest(sample)
    *inputs, direction = random_heads(structure, seed)
    for tensor in inputs:
        tensor.requires_grad_()
    results = [attend_by(structure, kind)(*inputs, scale=scale) for kind in ("chains", "dense")]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(r, inputs, direction) for r in results]
    for ours, reference in zip(*grads, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=4)
@given(samples(), st.sampled_from([None, 0.3]), st.integers(0, 2**31))
def test_flex_attention_equals_the_dense_one(sample: Sample, scale: float | None, seed: int) -> None:
    """Its backward pass exists on CUDA alone; the mask is the same for both."""
    structure = forest(sample)
    *inputs, _ = random_heads(structure, seed)
    results = [attend_by(structure, kind)(*inputs, scale=scale) for kind in ("flex", "dense")]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_the_backward_pass_of_a_shared_prefix_is_summed_in_float32() -> None:
    structure = place(sequences_of(make_sample(np.random.default_rng(3), [0] * 40, [2] * 40, vocab=9))).structure
    inputs = [t.requires_grad_() for t in random_heads(structure, 0)[:3]]
    direction = torch.ones(structure.num_tokens, 4, 8, dtype=torch.float64)
    exact = torch.autograd.grad(attend_by(structure, "chains")(*inputs, scale=None), inputs, direction)
    half = [t.detach().bfloat16().requires_grad_() for t in inputs]
    rough = torch.autograd.grad(attend_by(structure, "chains")(*half, scale=None), half, direction.bfloat16())
    for ours, reference in zip(rough, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.double() - reference).abs().max()) <= 0.02 * float(reference.abs().max())


def test_the_dense_attention_is_a_softmax_over_the_ancestors() -> None:
    structure = place(
        sequences_of(make_sample(np.random.default_rng(2), [0, 1, 1, 0], [2, 4, 1, 3], vocab=9))
    ).structure
    query, key, value = (torch.randn(structure.num_tokens, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    out = attend_by(structure, "dense")(query, key, value, scale=None)
    mask = ancestor_mask(structure, torch.device("cpu"))
    for head in range(4):
        scores = (query[:, head] @ key[:, head // 2].T / 8**0.5).masked_fill(~mask, -torch.inf)
        torch.testing.assert_close(out[:, head], scores.softmax(dim=-1) @ value[:, head // 2])

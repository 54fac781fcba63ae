"""The loss on a tree is the loss on its flattened paths: gradients of the whole model, for any tree."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import Batch
from learner.config import (
    ConstantLength,
    CorrectionConfig,
    Decoupled,
    LearnerConfig,
    LossConfig,
    Nll,
    NoCorrection,
    NormalisationConfig,
    Ppo,
    Reinforce,
    SequenceMean,
    TokenMean,
    TruncatedIs,
)
from learner.megatron import MegatronLearner
from tests.learner_models import make_model
from tests.learner_trees import batches

VOCAB = 31
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
"""Of the largest gradient: invariant 7 of the design."""
LOSSES: list[LossConfig] = [Ppo(eps_low=0.1, eps_high=0.3), Ppo(dual_clip=3.0), Reinforce(), Nll()]
CORRECTIONS: list[CorrectionConfig] = [NoCorrection(), Decoupled(cap=1.5), Decoupled(mode="clip"), TruncatedIs(cap=1.2)]
NORMALISATIONS: list[NormalisationConfig] = [TokenMean(), SequenceMean(), ConstantLength(length=20)]


@pytest.fixture(scope="module", params=["float64", "float32"])
def learner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MegatronLearner]:
    folder = tmp_path_factory.mktemp("trees")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    make_model(folder / "model", "qwen3", vocab_size=VOCAB, head_dim=8, **sizes)
    config = LearnerConfig(dtype=request.param)
    with MegatronLearner(config, model_path=folder / "model", weights_dir=folder / "weights") as made:
        yield made


@settings(max_examples=120)
@given(
    batch=batches(vocab=VOCAB),
    loss=st.sampled_from(LOSSES),
    correction=st.sampled_from(CORRECTIONS),
    normalisation=st.sampled_from(NORMALISATIONS),
    budget=st.sampled_from([1, 20, 60, 10_000]),
)
def test_a_tree_has_the_gradient_of_its_flattened_paths(
    learner: MegatronLearner, batch: Batch, loss: Any, correction: Any, normalisation: Any, budget: int
) -> None:
    """max |tree - flat| / max |flat| over all parameters; the trees cut to any budget, the flat rows long."""
    dtype = learner.config.dtype
    config = LearnerConfig(dtype=dtype, loss=loss, correction=correction, normalisation=normalisation)
    flat, tree = (
        learner.gradients(batch, msgspec.structs.replace(config, packing=packing, micro_batch_tokens=tokens))
        for packing, tokens in (("flat", 10_000), ("tree", budget))
    )
    largest = max(float(g.abs().max()) for g in flat.values())
    gap = max(float((tree[name] - flat[name]).abs().max()) for name in flat)
    assert gap <= TOLERANCE[dtype] * largest

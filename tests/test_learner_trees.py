"""The loss on a tree is the loss on its flattened paths: gradients of the whole model, for any tree."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.types import Batch
from learner.config import (
    AepoClip,
    Cispo,
    ConstantLength,
    CorrectionConfig,
    Decoupled,
    ExactIs,
    Gspo,
    IcePop,
    Kl,
    LearnerConfig,
    LossConfig,
    M2po,
    Nll,
    NoCorrection,
    NormalisationConfig,
    Ppo,
    Reinforce,
    RejectionConfig,
    SequenceGeometric,
    SequenceK3,
    SequenceMean,
    SequenceProduct,
    TokenMean,
    TruncatedIs,
    Veto,
)
from learner.megatron import MegatronLearner
from tests.learner_models import make_model
from tests.learner_trees import batches

VOCAB = 31
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
"""Of the largest gradient: invariant 7 of the design."""
LOSSES: list[LossConfig] = [
    Ppo(eps_low=0.1, eps_high=0.3),
    Ppo(dual_clip=3.0),
    AepoClip(),
    Cispo(),
    Gspo(eps_low=0.05, eps_high=0.1),
    Reinforce(),
    Nll(),
]
CORRECTIONS: list[CorrectionConfig] = [
    NoCorrection(),
    Decoupled(cap=1.5),
    Decoupled(mode="clip"),
    TruncatedIs(cap=1.2),
    TruncatedIs(level="sequence", cap=1.5),
    IcePop(low=0.7, high=1.6),
    ExactIs(),
    ExactIs(over="prefix"),
]
REJECTIONS: list[tuple[RejectionConfig, ...]] = [
    (),
    (SequenceProduct(low=0.2, high=4.0),),
    (SequenceGeometric(low=0.8, high=1.3), Veto(low=0.05, high=8.0)),
    (SequenceK3(limit=0.3),),
    (M2po(tau=0.3),),
]
NORMALISATIONS: list[NormalisationConfig] = [TokenMean(), SequenceMean(), ConstantLength(length=20)]


@pytest.fixture(scope="module", params=["float64", "float32"])
def learner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MegatronLearner]:
    folder = tmp_path_factory.mktemp("trees")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    make_model(folder / "model", "qwen3", vocab_size=VOCAB, head_dim=8, **sizes)
    config = LearnerConfig(dtype=request.param, kl=Kl())  # with a reference policy
    with MegatronLearner(config, model_path=folder / "model", weights_dir=folder / "weights") as made:
        yield made


@settings(max_examples=250)
@given(
    batch=batches(vocab=VOCAB),
    loss=st.sampled_from(LOSSES),
    correction=st.sampled_from(CORRECTIONS),
    rejections=st.sampled_from(REJECTIONS),
    kl=st.sampled_from([None, Kl(coef=0.1), Kl(coef=0.1, estimator="k2")]),
    leaf_weighting=st.sampled_from(["equal", "inverse_branching"]),
    normalisation=st.sampled_from(NORMALISATIONS),
    budget=st.sampled_from([1, 20, 60, 10_000]),
)
def test_a_tree_has_the_gradient_of_its_flattened_paths(
    learner: MegatronLearner, batch: Batch, budget: int, **choices: Any
) -> None:
    """max |tree - flat| / max |flat| over all parameters; the trees cut to any budget, the flat rows long."""
    dtype = learner.config.dtype
    # where one token stays and the next one goes, float32 may decide either way
    assume(dtype == "float64" or not any(isinstance(r, M2po) for r in choices["rejections"]))
    config = LearnerConfig(dtype=dtype, entropy_coef=0.01, **choices)
    flat, tree = (
        learner.gradients(batch, msgspec.structs.replace(config, packing=packing, micro_batch_tokens=tokens))
        for packing, tokens in (("flat", 10_000), ("tree", budget))
    )
    largest = max(float(g.abs().max()) for g in flat.values())
    gap = max(float((tree[name] - flat[name]).abs().max()) for name in flat)
    assert gap <= TOLERANCE[dtype] * largest

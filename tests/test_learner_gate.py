"""The mismatch gate, the figures it looks at, and what happens to the weights."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from engine.errors import LearnerError
from engine.types import Batch, Node, NodeKind, Sample
from learner.algorithms.gate import judge
from learner.config import LearnerConfig, MismatchGate, SequenceK3
from tests.learner_models import PLAIN, exported, make_model, random_batch, random_sample

LIMIT = 2.0
"""Nats; what the samples of a random model are apart from it stays below."""


def shifted(sample: Sample, by: float) -> Sample:
    """The sample as a policy would have drawn it whose every log-probability is lower."""

    def moved(node: Node) -> Node:
        return msgspec.structs.replace(node, logprobs=node.logprobs - np.float32(by))

    nodes = [moved(n) if n.kind is NodeKind.SAMPLED else n for n in sample.group.tree.nodes]
    tree = msgspec.structs.replace(sample.group.tree, nodes=tuple(nodes))
    return msgspec.structs.replace(sample, group=msgspec.structs.replace(sample.group, tree=tree))


def mismatched_batch() -> Batch:
    """Three prompts, of which the last was sampled by something else."""
    first, second, third = random_batch(3).samples
    return Batch(step=4, samples=(first, second, shifted(third, 4.0)))


def gated(action: str, **changes: Any) -> LearnerConfig:
    gate = MismatchGate(kl_limit=LIMIT, action=action)  # type: ignore[arg-type]
    return msgspec.structs.replace(PLAIN, gate=gate, **changes)


def test_a_warning_is_said_once_and_changes_nothing(
    folder: Path, open_learner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    make_model(folder)
    plain = msgspec.structs.replace(PLAIN, gate=MismatchGate(kl_limit=1e9))
    learner = open_learner(plain, weights="plain")
    assert learner.step(mismatched_batch()).mismatch == "none"
    expected = exported(learner)
    learner = open_learner(gated("warn"), weights="warned")
    with caplog.at_level(logging.WARNING, logger="learner.algorithms.gate"):
        report = learner.step(mismatched_batch())
    assert report.mismatch == "warned"
    assert report.kl_rollout > LIMIT
    assert [r.message.split(":")[0] for r in caplog.records] == ["step 4"]
    assert all(torch.equal(value, expected[name]) for name, value in exported(learner).items())


def test_masking_leaves_out_the_trajectories_that_are_apart(folder: Path, open_learner: Any) -> None:
    make_model(folder)
    rejecting = msgspec.structs.replace(PLAIN, rejections=(SequenceK3(limit=LIMIT),))
    learner = open_learner(rejecting, weights="rejecting")
    learner.step(mismatched_batch())
    expected = exported(learner)
    learner = open_learner(gated("mask"), weights="masked")
    report = learner.step(mismatched_batch())
    assert report.mismatch == "masked"
    assert 0.1 < report.rejected_fraction < 0.9
    assert all(torch.equal(value, expected[name]) for name, value in exported(learner).items())


@pytest.mark.parametrize("num_minibatches", [1, 3])
def test_stopping_applies_nothing(num_minibatches: int, folder: Path, open_learner: Any) -> None:
    make_model(folder)
    learner = open_learner(gated("stop", num_minibatches=num_minibatches))
    before = exported(learner)
    with pytest.raises(LearnerError, match=r"step 4: .* apart, above learner\.gate\.kl_limit = 2; nothing was applied"):
        learner.step(mismatched_batch())
    assert learner.version == 0
    assert all(torch.equal(value, before[name]) for name, value in exported(learner).items())
    assert learner.step(random_batch(3)).version == 1


def test_a_limit_is_kept_by_what_reaches_it() -> None:
    assert judge(MismatchGate(kl_limit=0.1), kl_rollout=0.1, step=1, speaks=True) == "none"
    assert judge(MismatchGate(kl_limit=0.1), kl_rollout=0.101, step=1, speaks=False) == "warned"


def test_the_report_tells_versions_apart(folder: Path, open_learner: Any) -> None:
    make_model(folder)
    rng = np.random.default_rng(8)

    def of_version(sample: Sample, version: int) -> Sample:
        nodes = [
            msgspec.structs.replace(n, versions=np.full_like(n.versions, version)) for n in sample.group.tree.nodes
        ]
        tree = msgspec.structs.replace(sample.group.tree, nodes=tuple(nodes))
        return msgspec.structs.replace(sample, group=msgspec.structs.replace(sample.group, tree=tree))

    old, new = random_sample(rng, 0), shifted(random_sample(rng, 1), 1.0)
    alone = {
        version: open_learner(PLAIN, weights=f"v{version}").step(Batch(step=1, samples=(sample,)))
        for version, sample in ((2, old), (5, new))
    }
    report = open_learner(PLAIN, weights="both").step(Batch(step=1, samples=(of_version(old, 2), of_version(new, 5))))
    assert [r.version for r in report.by_version] == [5, 2]
    for found in report.by_version:
        own = alone[found.version]
        assert found.num_trained_tokens == own.num_trained_tokens
        for name in ("entropy", "kl_rollout", "ratio_max", "clip_fraction"):
            assert getattr(found, name) == pytest.approx(getattr(own, name), rel=1e-4)

"""The learner in one process, against transformers and plain autograd on the same weights and the same batch."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.types import (
    Batch,
    NodeKind,
    RolloutStatus,
)
from learner.config import ConstantSchedule, Decoupled, LearnerConfig, LossConfig, Nll, NoCorrection, Ppo, SequenceMean
from learner.sft import batch_of, sample_of
from tests.learner_models import PLAIN, VOCAB, exported, make_model, random_batch, reference_logprobs


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_logprobs_equal_transformers_packed_or_not_and_weights_survive_bitwise(
    kind: str, is_tied: bool, folder: Path, open_learner: Any
) -> None:
    model = make_model(folder, kind, is_tied=is_tied)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, VOCAB, n).astype(np.int32) for n in (5, 40, 1, 17, 90)]
    learner = open_learner()
    packed = learner.logprobs(sequences)
    for token_ids, ours in zip(sequences, packed, strict=True):
        alone = learner.logprobs([token_ids])[0]
        expected = reference_logprobs(model, token_ids).detach().numpy()
        assert ours[0] == 0
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours[1:], expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(alone, ours, atol=2e-6, rtol=0)
    original, back = load_file(folder / "model.safetensors"), exported(learner)
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original)
    reloaded = AutoModelForCausalLM.from_pretrained(Path(learner.publish().path), dtype=torch.float32)
    torch.testing.assert_close(reference_logprobs(reloaded, sequences[1]), reference_logprobs(model, sequences[1]))


def reference_loss(model: PreTrainedModel, batch: Batch, config: LearnerConfig) -> torch.Tensor:
    """Decoupled or bypassed PPO, token- or sequence-mean, written trajectory by trajectory."""
    losses: list[torch.Tensor] = []
    for sample in batch.samples:
        for trajectory, advantages in zip(sample.group.trajectories, sample.advantages, strict=True):
            if trajectory.status is RolloutStatus.FAILED:
                continue
            nodes = [sample.group.tree.nodes[i] for i in sample.group.tree.path_to(trajectory.leaf)]
            token_ids = sample.group.tree.token_ids(trajectory.leaf)
            is_sampled = np.concatenate([np.full(len(n.token_ids), n.kind is NodeKind.SAMPLED) for n in nodes])
            behaviour = torch.from_numpy(np.concatenate([n.logprobs for n in nodes]))
            now = reference_logprobs(model, token_ids, temperature=config.temperature)[is_sampled[1:]]
            advantage = torch.from_numpy(advantages[is_sampled])
            assert isinstance(config.loss, Ppo)
            if isinstance(config.correction, NoCorrection):
                ratio, weight = (now - behaviour).exp(), torch.ones_like(now)
            else:
                assert isinstance(config.correction, Decoupled)
                ratio, weight = (now - now.detach()).exp(), (now.detach() - behaviour).exp()
                weight = torch.where(weight > (config.correction.cap or math.inf), 0.0, weight)
            low, high = 1 - config.loss.eps_low, 1 + config.loss.eps_high
            losses.append(-weight * torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage))
    if isinstance(config.normalisation, SequenceMean):
        return torch.stack([loss.mean() for loss in losses]).mean()
    return torch.cat(losses).mean()


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        msgspec.structs.replace(PLAIN, correction=NoCorrection(), normalisation=SequenceMean(), temperature=0.7),
        msgspec.structs.replace(PLAIN, correction=Decoupled(cap=1.2), recompute="full"),
        msgspec.structs.replace(PLAIN, fixed_shapes=True, recompute="selective"),
    ],
    ids=["decoupled", "bypass_sequence_mean", "masked_recompute_full", "fixed_shapes_recompute_selective"],
)
def test_one_step_has_the_loss_and_the_gradient_of_an_independent_implementation(
    config: LearnerConfig, folder: Path, open_learner: Any
) -> None:
    model = make_model(folder, is_tied=True)
    batch = random_batch(1)
    loss = reference_loss(model, batch, config)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
    # with eps >> |g|, AdamW's first update is lr * g / eps up to |g| / eps: the weights show the gradient
    largest = max(float(g.abs().max()) for g in grads.values())
    eps = 1e3 * largest
    learner = open_learner(msgspec.structs.replace(config, lr=eps, adam_eps=eps, grad_clip=0.0))
    before = exported(learner)
    report = learner.step(batch)
    after = exported(learner)
    assert report.loss == pytest.approx(loss.item(), abs=1e-6)
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)
    for name, grad in grads.items():
        seen = (before[name].double() - after[name].double()) * (1 + grad.double().abs() / eps)
        assert float((seen - grad.double()).abs().max()) <= 1e-5 * largest, name


def test_an_update_is_adamw_on_the_clipped_gradient_and_spares_norms_and_biases(
    folder: Path, open_learner: Any
) -> None:
    model = make_model(folder, "qwen2", is_tied=True)
    batch = random_batch(6)
    loss = reference_loss(model, batch, PLAIN)
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01))
    assert norm > 0.02
    eps = 1e-4
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.5},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=0.1 / 4, betas=(0.8, 0.9), eps=eps).step()
    changes = {"lr": 0.1, "schedule": ConstantSchedule(warmup_steps=3), "betas": (0.8, 0.9), "adam_eps": eps}
    learner = open_learner(msgspec.structs.replace(PLAIN, weight_decay=0.5, grad_clip=0.01, **changes))
    report = learner.step(batch)
    assert (report.learning_rate, report.grad_norm) == pytest.approx((0.1 / 4, norm), rel=1e-5)
    ours = exported(learner)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=0, atol=2e-5)


def test_the_report_counts_and_measures_what_was_trained(folder: Path, open_learner: Any) -> None:
    model = make_model(folder)
    batch = random_batch(2)
    now, behaviour, entropies, num_tokens = [], [], [], 0
    for sample in batch.samples:
        for trajectory in sample.group.trajectories[:3]:
            nodes = [sample.group.tree.nodes[i] for i in sample.group.tree.path_to(trajectory.leaf)]
            ids = torch.from_numpy(sample.group.tree.token_ids(trajectory.leaf).astype(np.int64))
            mask = np.concatenate([np.full(len(n.token_ids), n.kind is NodeKind.SAMPLED) for n in nodes])[1:]
            scores = model(ids[None]).logits[0, :-1].detach().double().log_softmax(-1)[mask]
            now.append(scores.gather(1, ids[1:][mask][:, None]).squeeze(1))
            entropies.append(-(scores.exp() * scores).sum(-1))
            behaviour.append(torch.from_numpy(np.concatenate([n.logprobs for n in nodes])).double())
            num_tokens += len(ids)
    log_rho = torch.cat(now) - torch.cat(behaviour)
    report = open_learner().step(batch)
    counts = (report.version, report.num_trained_tokens, report.num_computed_tokens)
    assert counts == (1, len(log_rho), sum(n.token_ids.size for s in batch.samples for n in s.group.tree.nodes[:6]))
    assert report.entropy == pytest.approx(float(torch.cat(entropies).mean()), abs=1e-4)
    assert report.kl_rollout == pytest.approx(float((log_rho.exp() - 1 - log_rho).mean()), rel=1e-4)
    assert report.ratio_max == pytest.approx(float(log_rho.max().exp()), rel=1e-4)
    assert report.clip_fraction == 0


@pytest.mark.parametrize("num_minibatches", [1, 3])
def test_in_float64_the_packing_of_rows_does_not_matter(num_minibatches: int, folder: Path, open_learner: Any) -> None:
    make_model(folder, "qwen2")
    config = msgspec.structs.replace(PLAIN, dtype="float64", num_minibatches=num_minibatches, weight_decay=0.1)
    results = []
    for budget in (1, 64, 100_000):
        learner = open_learner(msgspec.structs.replace(config, micro_batch_tokens=budget), weights=f"w{budget}")
        assert learner.step(random_batch(3)).version == 1
        results.append(exported(learner))
        assert {t.dtype for t in results[-1].values()} == {torch.float64}
    for name, expected in results[0].items():
        for other in results[1:]:
            torch.testing.assert_close(other[name], expected, rtol=0, atol=1e-11)


def test_later_minibatches_compare_with_the_policy_before_the_step(folder: Path, open_learner: Any) -> None:
    make_model(folder)
    loss: LossConfig = Ppo(eps_low=0.0, eps_high=1e-6)
    config = msgspec.structs.replace(PLAIN, loss=loss, num_minibatches=3, correction=Decoupled(cap=None))
    report = open_learner(config).step(random_batch(4))
    assert 0 < report.clip_fraction < 1  # the first update has ratio 1, those after it have moved away


def test_supervised_traces_are_learned_by_heart(folder: Path, open_learner: Any) -> None:
    make_model(folder)
    rng = np.random.default_rng(5)
    traces = [rng.integers(0, VOCAB, 24).astype(np.int32) for _ in range(3)]
    mask = np.arange(24) > 3
    batch = batch_of(0, [sample_of(f"t{i}", token_ids=t, is_trained=mask) for i, t in enumerate(traces)])
    learner = open_learner(msgspec.structs.replace(PLAIN, loss=Nll(), correction=NoCorrection()))
    reports = [learner.step(batch) for _ in range(40)]
    assert reports[0].loss > 3
    assert reports[-1].loss < 0.1
    assert reports[-1].kl_rollout == 0
    scored = np.concatenate([lp[mask] for lp in learner.logprobs(traces)])
    assert -scored.mean() < 0.1

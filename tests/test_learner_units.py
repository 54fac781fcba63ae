"""The learner's parts that need torch but no Megatron: log-probabilities, the weight map, layouts, the schedule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import decode
from engine.errors import ConfigError, DataError
from engine.inference.shape import inverse_frequencies, shape_of
from learner.config import ConstantSchedule, CosineSchedule, LearnerConfig, Ppo
from learner.mcore_cpu import cuda_means_cpu
from learner.network.attention import Rotation
from learner.network.logprobs import token_logprobs
from learner.schedule import learning_rate
from learner.storage.weights import cut, join, stage_mappings

HF = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 51,
}


@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 1.7]), st.integers(3, 7))
def test_logprobs_and_entropies_equal_log_softmax_with_their_gradients(
    seed: int, temperature: float, vocab_size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(5, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(0, vocab_size, (5,), generator=generator)
    logprobs, entropies = token_logprobs(logits, targets, vocab_size=vocab_size, temperature=temperature)
    (grad,) = torch.autograd.grad((logprobs * targets).sum() + (entropies * entropies).sum(), logits)

    scores = (logits[:, :vocab_size] / temperature).log_softmax(-1)
    reference, entropy = scores.gather(1, targets[:, None]).squeeze(1), -(scores.exp() * scores).sum(-1)
    (expected,) = torch.autograd.grad((reference * targets).sum() + (entropy * entropy).sum(), logits)
    torch.testing.assert_close(logprobs, reference)
    torch.testing.assert_close(entropies, entropy)
    torch.testing.assert_close(grad, expected)


def test_bf16_logits_give_float32_logprobs_and_bf16_gradients() -> None:
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.bfloat16, requires_grad=True)
    before = logits.detach().clone()
    logprobs, entropies = token_logprobs(logits, torch.tensor([1]), vocab_size=2)
    logprobs.sum().backward()
    assert logprobs.dtype == entropies.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    assert logprobs.item() == pytest.approx(math.log(0.75), abs=2e-3)
    assert entropies.item() == pytest.approx(0.562, abs=2e-3)
    assert torch.equal(logits.detach(), before)


@given(
    st.sampled_from(["qwen2", "qwen3", "llama"]),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
)
def test_shards_join_to_the_tensors_they_were_cut_from(kind: str, is_tied: bool, tp: int, pp: int) -> None:
    shape = shape_of({**HF, "tie_word_embeddings": is_tied}, kind)
    generator = torch.Generator().manual_seed(0)
    exported: set[str] = set()
    for stage in range(pp):
        for mapping in stage_mappings(shape, stage=stage, num_stages=pp):
            whole = [torch.randn(s, generator=generator) for s in mapping.shapes]
            shards = [cut(mapping, whole, shape=shape, rank=r, size=tp) for r in range(tp)]
            assert len({s.shape for s in shards}) == 1
            for tensor, back in zip(whole, join(mapping, shards, shape=shape), strict=True):
                assert torch.equal(tensor, back)
            if mapping.is_exported:
                assert not exported & set(mapping.tensors)
                exported |= set(mapping.tensors)
    assert exported == {t for m in stage_mappings(shape) for t in m.tensors}
    assert ("lm_head.weight" in exported) is not is_tied


def test_a_rank_holds_whole_query_groups_with_their_keys_and_values() -> None:
    shape = shape_of(HF, "qwen2")  # 4 groups of 2 query heads, head size 2
    mapping = next(m for m in stage_mappings(shape) if m.rule == "qkv" and m.parameter.endswith("bias"))
    q, k, v = torch.arange(16.0), 100 + torch.arange(8.0), 200 + torch.arange(8.0)
    shard = cut(mapping, [q, k, v], shape=shape, rank=1, size=4)
    assert shard.tolist() == [4, 5, 6, 7, 102, 103, 202, 203]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        shape_of({**HF, **changes}, "qwen2")


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = shape_of({**HF, "rope_theta": 5e5}, "qwen2")
    new = shape_of({**HF, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "qwen2")
    assert old == new
    assert old.rope_theta == 5e5


def test_rotary_angles_follow_the_depths_of_a_layout_not_the_places_in_the_row() -> None:
    depths = np.array([0, 1, 0, 1, 2])
    rotation = Rotation.of(torch.from_numpy(depths), torch.tensor([1.0, 0.1]))
    assert rotation.cos.shape == rotation.sin.shape == (5, 1, 4)
    np.testing.assert_allclose(rotation.cos[:, 0, 0], np.cos(depths), rtol=1e-6)
    np.testing.assert_allclose(rotation.sin[:, 0, 3], np.sin(0.1 * depths), rtol=1e-6)


def test_the_cuda_device_is_the_cpu_inside_the_context_and_unknown_again_outside() -> None:
    if torch.cuda.is_available():
        pytest.skip("has the device")
    names = [torch.zeros, torch.tensor, torch.cuda.current_device]
    with cuda_means_cpu(), cuda_means_cpu():
        made = torch.zeros(2, device="cuda", pin_memory=True)
        assert made.device == torch.cuda.current_device() == torch.device("cpu")
        assert made.cuda() is made
        assert made.type() == "torch.cuda.FloatTensor"
        assert made.type(torch.int32).dtype == torch.int32
    assert [torch.zeros, torch.tensor, torch.cuda.current_device] == names
    assert made.type() == "torch.FloatTensor"


def test_llama_3_rope_equals_the_reference_implementation() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    raw = {**HF, "model_type": "llama", "hidden_size": 512, "rope_parameters": rope}
    config = LlamaConfig(**{k: v for k, v in raw.items() if k != "model_type"}, max_position_embeddings=512)
    expected = LlamaRotaryEmbedding(config).inv_freq
    ours = torch.from_numpy(inverse_frequencies(shape_of(raw, "llama")))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_the_rate_warms_up_then_holds_or_falls_to_its_floor() -> None:
    constant = [learning_rate(ConstantSchedule(warmup_steps=2), lr=3.0, step=s) for s in range(4)]
    assert constant == [1.0, 2.0, 3.0, 3.0]
    cosine = CosineSchedule(total_steps=12, warmup_steps=2, min_ratio=0.1)
    rates = [learning_rate(cosine, lr=1.0, step=s) for s in range(15)]
    np.testing.assert_allclose([rates[2], rates[7], rates[12], rates[14]], [1.0, 0.55, 0.1, 0.1])
    assert rates[2:13] == sorted(rates[2:13], reverse=True)


def test_the_configuration_is_tagged_and_names_the_wrong_key() -> None:
    config = decode({"loss": {"kind": "ppo", "eps_high": 0.28}, "lr": "1e-4"}, LearnerConfig, source="a.toml")
    assert config.loss == Ppo(eps_high=0.28)
    assert config.lr == 1e-4
    with pytest.raises(ConfigError, match=r"eps_hihg.*\$\.loss"):
        decode({"loss": {"kind": "ppo", "eps_hihg": 0.28}}, LearnerConfig, source="a.toml")

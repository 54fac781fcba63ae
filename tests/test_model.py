"""The forward pass against transformers, the C kernels against torch, and the folder of weights they read."""

import ctypes
import json
import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from engine.errors import DataError
from engine.inference.attention import KVCache, Norms, Segments, make_attention, make_kv_cache
from engine.inference.model import Decoder
from engine.inference.native import load_native
from engine.inference.ops import NativeOps, Ops, TorchOps
from engine.inference.shape import ModelKind, ModelShape, parameter_shapes, read_shape
from engine.inference.tiny import make_tiny_model

CPU = torch.device("cpu")
NUM_SLOTS = 96


@pytest.fixture(scope="module")
def native() -> ctypes.CDLL:
    library = load_native()
    if library is None:
        pytest.skip("no C compiler")
    return library


def save_with_transformers(path: Path, kind: ModelKind, *, tie: bool) -> torch.nn.Module:
    """A model of random weights, biases and norms, written by the reference implementation."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config_type, model_type = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[kind]
    config = config_type(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16 if kind == "qwen3" else 8,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    model = model_type(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(path)
    return model


def make_decoder(
    path: Path, *, library: ctypes.CDLL | None, is_deterministic: bool = False
) -> tuple[Decoder, ModelShape]:
    shape = read_shape(path)
    cache = make_kv_cache(shape, num_slots=NUM_SLOTS, device=CPU, dtype=torch.float32)
    attention = make_attention(shape, cache, num_positions=96, native=library)
    ops: Ops = TorchOps() if library is None else NativeOps(library)
    decoder = Decoder(shape, attention, ops, device=CPU, dtype=torch.float32, is_deterministic=is_deterministic)
    decoder.load(str(path))
    return decoder, shape


def scattered_table(num_rows: int, width: int) -> np.ndarray:
    slots = np.random.default_rng(0).permutation(num_rows * width)
    return slots.reshape(num_rows, width).astype(np.int32)


def int32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def logits_in_chunks(decoder: Decoder, token_ids: np.ndarray, chunks: list[int]) -> torch.Tensor:
    """Logits of every token of one sequence that is computed in the given chunks, from slots all over the pool."""
    table, start, parts = scattered_table(1, NUM_SLOTS), 0, []
    for count in chunks:
        segments = Segments(table, rows=int32(0), starts=int32(start), counts=int32(count))
        tokens = torch.from_numpy(token_ids[start : start + count])
        parts.append(decoder.forward(tokens, segments, logit_rows=None))
        start += count
    return torch.cat(parts)


@pytest.mark.parametrize("uses_native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_log_probabilities_equal_those_of_transformers(
    kind: ModelKind, tie: bool, uses_native: bool, tmp_path: Path, native: ctypes.CDLL
) -> None:
    reference = save_with_transformers(tmp_path, kind, tie=tie)
    decoder, _ = make_decoder(tmp_path, library=native if uses_native else None)
    token_ids = np.random.default_rng(1).integers(0, 61, 90).astype(np.int32)
    got = torch.log_softmax(logits_in_chunks(decoder, token_ids, [37, 1, 1, 50, 1]), dim=-1)
    with torch.no_grad():
        wanted = torch.log_softmax(reference(torch.from_numpy(token_ids[None].astype(np.int64))).logits[0], dim=-1)
    assert (got - wanted).abs().max() < 1e-4
    assert (wanted.max(-1).values - wanted.min(-1).values).mean() > 2  # far from uniform: a wrong rotation would show


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 32), (4, 4, 16), (7, 1, 64), (2, 1, 128), (4, 2, 10)])
@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "plain"])
def test_kernel_attention_equals_torch(
    heads: int, kv_heads: int, dim: int, has_norm: bool, tmp_path: Path, native: ctypes.CDLL
) -> None:
    shape = make_tiny_model(tmp_path, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, num_layers=2)
    generator = torch.Generator().manual_seed(0)
    table = scattered_table(4, 200)
    first = make_kv_cache(shape, num_slots=800, device=CPU, dtype=torch.float32)
    for part in first:
        part.normal_(generator=generator)
    second = KVCache(first.keys.clone(), first.values.clone())
    norms = Norms(None, None)
    if has_norm:
        norms = Norms(torch.rand(dim, generator=generator) + 0.5, torch.rand(dim, generator=generator) + 0.5)
    # Decodes and prefill chunks mixed, across the kernel's key blocks of 64.
    segments = Segments(table, rows=int32(2, 0, 3, 1), starts=int32(130, 0, 0, 60), counts=int32(1, 1, 70, 9))
    qkv = torch.randn(81, (heads + 2 * kv_heads) * dim, generator=generator)
    results: list[torch.Tensor] = []
    for cache, library in ((first, native), (second, None)):
        attention = make_attention(shape, cache, num_positions=200, native=library)
        attention.begin(segments)
        results.append(attention.attend(1, qkv.clone(), norms))
    torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(first.keys, second.keys, atol=2e-5, rtol=2e-5)
    assert torch.equal(first.values, second.values)


def test_a_token_does_not_depend_on_how_its_sequence_was_cut_into_chunks(tmp_path: Path, native: ctypes.CDLL) -> None:
    make_tiny_model(tmp_path, vocab_size=64, num_layers=2, init_std=0.3)
    token_ids = np.random.default_rng(1).integers(0, 64, 90).astype(np.int32)
    for chunks, library in (([90], native), ([90], None)):
        decoder, _ = make_decoder(tmp_path, library=library)
        whole = logits_in_chunks(decoder, token_ids, chunks)
        one_by_one = logits_in_chunks(decoder, token_ids, [1] * 90)
        torch.testing.assert_close(whole, one_by_one, atol=1e-4, rtol=1e-4)


def test_deterministic_logits_are_equal_bit_by_bit_however_they_are_computed(
    tmp_path: Path, native: ctypes.CDLL
) -> None:
    make_tiny_model(tmp_path, vocab_size=64, num_layers=2, init_std=0.3)
    decoder, _ = make_decoder(tmp_path, library=native, is_deterministic=True)
    token_ids = np.random.default_rng(1).integers(0, 64, 90).astype(np.int32)
    whole = logits_in_chunks(decoder, token_ids, [90])
    for chunks in ([1] * 90, [33, 57], [64, 1, 25]):
        assert torch.equal(logits_in_chunks(decoder, token_ids, chunks), whole)


def test_native_operations_equal_torch(native: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 130, generator=generator) * 8, torch.rand(130, generator=generator)
    ours, reference = NativeOps(native), TorchOps()
    torch.testing.assert_close(ours.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    torch.testing.assert_close(ours.gated_silu(x * 10), reference.gated_silu(x * 10))


def test_a_missing_compiler_costs_one_line_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    load_native.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert load_native() is None
        assert [record.getMessage() for record in caplog.records] == [
            "no C kernels, torch is used instead (several times slower on a CPU): "
            "no C compiler (cc, gcc, clang) on PATH"
        ]
    finally:
        load_native.cache_clear()


def test_a_tiny_model_is_the_same_for_the_same_seed_and_transformers_reads_it(tmp_path: Path) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_tiny_model(tmp_path / name, vocab_size=50, num_layers=1, seed=seed, qk_norm=2.0, eos_token_ids=(3,))
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(info.values())
    assert model.config.eos_token_id == 3
    assert float(model.model.layers[0].self_attn.q_norm.weight.detach().mean()) == 2.0


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_the_shape_written_is_the_shape_read(kind: ModelKind, tmp_path: Path) -> None:
    shape = make_tiny_model(tmp_path, kind=kind, vocab_size=50, num_layers=1, tie=False)
    assert read_shape(tmp_path) == shape
    assert "lm_head.weight" in parameter_shapes(shape)
    assert "lm_head.weight" not in parameter_shapes(msgspec.structs.replace(shape, is_tied=True))


def test_rope_theta_is_read_from_either_place(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, vocab_size=50, num_layers=1, rope_theta=123.0)
    raw = json.loads((tmp_path / "config.json").read_text())
    for key in ("rope_theta", "rope_parameters"):
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k != key}))
        assert read_shape(tmp_path).rope_theta == 123.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not one of"),
        ({"vocab_size": None}, "vocab_size"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type 'yarn' is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window True is not supported"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
    ],
)
def test_a_model_we_cannot_run_is_refused_by_name(change: dict[str, object], message: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, vocab_size=50, num_layers=1)
    raw = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(DataError, match=message):
        read_shape(tmp_path)


def test_a_wrong_checkpoint_is_refused_with_both_shapes_and_changes_nothing(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "good", vocab_size=50, num_layers=1, init_std=0.3)
    decoder, _ = make_decoder(tmp_path / "good", library=None)
    before = logits_in_chunks(decoder, int32(1, 2, 3), [3])
    make_tiny_model(tmp_path / "wide", vocab_size=50, num_layers=1, intermediate_size=400, seed=9)
    with pytest.raises(DataError, match=r"layers.0.mlp.gate_proj.weight is \[400, 128\], the model wants \[384, 128\]"):
        decoder.load(str(tmp_path / "wide"))
    make_tiny_model(tmp_path / "biased", kind="qwen2", vocab_size=50, num_layers=1, seed=9)
    with pytest.raises(DataError, match=r"self_attn.k_proj.bias has no place in the model"):
        decoder.load(str(tmp_path / "biased"))
    make_tiny_model(tmp_path / "plain", kind="llama", vocab_size=50, num_layers=1, seed=9)
    with pytest.raises(DataError, match=r"self_attn.q_norm.weight is missing, the model wants \[32\]"):
        decoder.load(str(tmp_path / "plain"))
    with pytest.raises(DataError, match=r"holds no .safetensors file"):
        decoder.load(str(tmp_path))
    assert torch.equal(logits_in_chunks(decoder, int32(1, 2, 3), [3]), before)

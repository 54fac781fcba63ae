"""ModelShape: what a Hugging Face `config.json` says about a Qwen2, Qwen3 or Llama decoder, and the tensors it implies.

Reads no tensor and loads no torch, so the generator, the learner and the maker of tiny models agree on one table of
names and shapes. What the forward pass does not implement (scaled RoPE, sliding windows, other activations) is
refused here, by name.
"""

import json
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import numpy as np

from engine.errors import DataError
from engine.types import Float32

ModelKind = Literal["qwen2", "qwen3", "llama"]

_ARCHITECTURES: dict[str, str] = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


class Llama3Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Llama 3's stretching of the long rotary waves."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions of one decoder-only model."""

    kind: ModelKind
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    llama3_rope: Llama3Rope | None = None
    rms_eps: float = 1e-6
    is_tied: bool = False
    """The output layer is the embedding matrix."""
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    """RMS norm over each head of the queries and keys, before RoPE."""

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def read_shape(path: str | Path) -> ModelShape:
    """The shape of the model in folder `path`. Raises `DataError` with one line naming the file and the key."""
    file = Path(path) / "config.json"
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; a model is a folder in Hugging Face form") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file}: {error}") from None
    if not isinstance(raw, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(f"{file}: expected an object")
    kind = raw.get("model_type")
    if kind not in _ARCHITECTURES:
        raise DataError(f"{file}: model_type {kind!r} is not one of {', '.join(_ARCHITECTURES)}")
    try:
        return shape_of(raw, cast(ModelKind, kind))
    except KeyError as error:
        raise DataError(f"{file}: key {error.args[0]!r} is missing") from None
    except (DataError, TypeError) as error:
        raise DataError(f"{file}: {error}") from None


def shape_of(raw: dict[str, Any], kind: ModelKind) -> ModelShape:
    """As `read_shape`, from the decoded object; raises `KeyError` for a missing key."""
    rope_theta, llama3_rope = _rope(raw)
    refused = {
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "use_sliding_window": (bool(raw.get("use_sliding_window", False)), False),
        "mlp_bias": (bool(raw.get("mlp_bias", False)), False),
        "attention_bias": (bool(raw.get("attention_bias", False)), False),
    }
    for key, (value, supported) in refused.items():
        if value != supported:
            raise DataError(f"{key} {value!r} is not supported, only {supported!r}")
    num_heads = int(raw["num_attention_heads"])
    hidden_size = int(raw["hidden_size"])
    shape = ModelShape(
        kind=kind,
        vocab_size=int(raw["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
        head_dim=int(raw.get("head_dim") or (128 if kind == "qwen3" else hidden_size // num_heads)),
        max_positions=int(raw.get("max_position_embeddings", 32_768)),
        rope_theta=rope_theta,
        llama3_rope=llama3_rope,
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        is_tied=bool(raw.get("tie_word_embeddings", False)),
        has_qkv_bias=kind == "qwen2",
        has_qk_norm=kind == "qwen3",
    )
    if shape.num_heads % shape.num_kv_heads or shape.head_dim % 2:
        raise DataError(
            f"num_attention_heads {shape.num_heads}, num_key_value_heads {shape.num_kv_heads} and head_dim "
            f"{shape.head_dim} do not fit together"
        )
    return shape


def _rope(raw: dict[str, Any]) -> tuple[float, Llama3Rope | None]:
    """Both spellings: `rope_parameters` of transformers 5, and the older `rope_theta` with `rope_scaling`."""
    rope: dict[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise DataError(f"rope type {kind!r} is not supported, only 'default' and 'llama3'")
    return theta, Llama3Rope(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_length=int(rope["original_max_position_embeddings"]),
    )


def inverse_frequencies(shape: ModelShape) -> Float32:
    """theta^(-2i/D) for i in 0..D/2-1 in float32; with Llama 3's rule, long waves are stretched by `factor`."""
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float32) / np.float32(shape.head_dim)
    inverse = (np.float32(1.0) / np.power(np.float32(shape.rope_theta), exponents)).astype(np.float32)
    rule = shape.llama3_rope
    if rule is None:
        return inverse
    wavelengths = 2 * np.pi / inverse
    longest, shortest = rule.original_length / rule.low_freq_factor, rule.original_length / rule.high_freq_factor
    smooth = (rule.original_length / wavelengths - rule.low_freq_factor) / (
        rule.high_freq_factor - rule.low_freq_factor
    )
    blended = (1 - smooth) * inverse / rule.factor + smooth * inverse
    stretched = np.where(wavelengths > longest, inverse / rule.factor, inverse)
    return np.where((wavelengths <= longest) & (wavelengths >= shortest), blended, stretched).astype(np.float32)


def write_config(path: str | Path, shape: ModelShape, *, eos_token_ids: tuple[int, ...] = ()) -> None:
    """Write the `config.json` that `read_shape` (and transformers) reads back as `shape`."""
    eos: int | list[int] | None = None
    if eos_token_ids:
        eos = eos_token_ids[0] if len(eos_token_ids) == 1 else list(eos_token_ids)
    raw = {
        "architectures": [_ARCHITECTURES[shape.kind]],
        "model_type": shape.kind,
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_eps,
        "tie_word_embeddings": shape.is_tied,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": None,
    }
    if shape.kind != "qwen2":
        raw["attention_bias"] = False
    file = Path(path) / "config.json"
    file.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def parameter_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Hugging Face names and shapes of every parameter, in the order of the forward pass.

    A linear weight is [out, in]. `lm_head.weight` is listed only where it is not tied.
    """
    hidden, query, kv, mid = shape.hidden_size, shape.query_size, shape.kv_size, shape.intermediate_size
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for index in range(shape.num_layers):
        layer = f"model.layers.{index}."
        table[layer + "input_layernorm.weight"] = (hidden,)
        for name, size in (("q_proj", query), ("k_proj", kv), ("v_proj", kv)):
            table[f"{layer}self_attn.{name}.weight"] = (size, hidden)
            if shape.has_qkv_bias:
                table[f"{layer}self_attn.{name}.bias"] = (size,)
        if shape.has_qk_norm:
            table[layer + "self_attn.q_norm.weight"] = (shape.head_dim,)
            table[layer + "self_attn.k_norm.weight"] = (shape.head_dim,)
        table[layer + "self_attn.o_proj.weight"] = (hidden, query)
        table[layer + "post_attention_layernorm.weight"] = (hidden,)
        table[layer + "mlp.gate_proj.weight"] = (mid, hidden)
        table[layer + "mlp.up_proj.weight"] = (mid, hidden)
        table[layer + "mlp.down_proj.weight"] = (hidden, mid)
    table["model.norm.weight"] = (hidden,)
    if not shape.is_tied:
        table["lm_head.weight"] = (shape.vocab_size, hidden)
    return table

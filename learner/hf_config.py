"""The shape of a model, read from its Hugging Face config.json; nothing heavy is needed to know it."""

from pathlib import Path
from typing import Any

import msgspec

from engine.errors import LearnerError

MODEL_TYPES = ("qwen2", "qwen3", "llama")


class Llama3Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Llama 3's stretching of the long rotary waves."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides the parameters of a decoder and how they act."""

    model_type: str
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    llama3_rope: Llama3Rope | None
    has_qkv_bias: bool
    has_qk_norm: bool
    is_tied: bool
    """The output layer is the embedding."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """The plain config.json of a model folder. Raises `LearnerError` where there is none."""
    path = Path(folder) / "config.json"
    try:
        raw = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise LearnerError(f"{path}: no such file") from None
    except msgspec.DecodeError as error:
        raise LearnerError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise LearnerError(f"{path}: expected an object, got {type(raw).__name__}")
    return raw


def read_shape(folder: str | Path) -> ModelShape:
    """The shape that config.json describes. Raises `LearnerError`, naming the key, for what is not supported."""
    raw = read_config(folder)
    where = Path(folder) / "config.json"
    try:
        return shape_of(raw)
    except LearnerError as error:
        raise LearnerError(f"{where}: {error}") from None
    except KeyError as error:
        raise LearnerError(f"{where}: missing key {error.args[0]!r}") from None


def shape_of(raw: dict[str, Any]) -> ModelShape:
    """As `read_shape`, from the decoded object; raises `KeyError` for a missing key."""
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise LearnerError(f"model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}")
    if raw.get("hidden_act", "silu") != "silu":
        raise LearnerError(f"hidden_act must be 'silu', got {raw['hidden_act']!r}")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if raw.get(key):
            raise LearnerError(f"{key} = true is not supported")
    num_heads = int(raw["num_attention_heads"])
    hidden_size = int(raw["hidden_size"])
    theta, llama3 = _rope(raw)
    return ModelShape(
        model_type=model_type,
        num_layers=int(raw["num_hidden_layers"]),
        hidden_size=hidden_size,
        ffn_size=int(raw["intermediate_size"]),
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
        head_dim=int(raw.get("head_dim") or (128 if model_type == "qwen3" else hidden_size // num_heads)),
        vocab_size=int(raw["vocab_size"]),
        max_positions=int(raw.get("max_position_embeddings", 32768)),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        llama3_rope=llama3,
        has_qkv_bias=model_type == "qwen2",
        has_qk_norm=model_type == "qwen3",
        is_tied=bool(raw.get("tie_word_embeddings", False)),
    )


def _rope(raw: dict[str, Any]) -> tuple[float, Llama3Rope | None]:
    """Both spellings: `rope_parameters`, and the older `rope_theta` with `rope_scaling`."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise LearnerError(f"rope type must be 'default' or 'llama3', got {kind!r}")
    return theta, Llama3Rope(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_length=int(rope["original_max_position_embeddings"]),
    )

"""The model of a run, as far as its sizes go: read from its folder, computed from its section, or known by its name.

Nothing is made and no tensor is read. Where the folder is on another machine, `models.toml` knows the usual ones.
"""

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from actors.config import Config, HfModel, TinyModel
from actors.doctor.finding import Finding, of_error, ok, refused, warning
from engine.errors import DataError
from engine.inference.loading import check_weights
from engine.inference.shape import ModelShape, parameter_shapes, read_shape, shape_of
from engine.tokenizer_tiny import ARPO_TAGS, CONTROL_TOKENS

TABLE = Path(__file__).with_name("models.toml")
NUM_BYTES = 256
"""A byte-level vocabulary begins with these."""
NUM_WORDS = 256
"""Estimate for a tokenizer of words, which nothing bounds: a generated task has one or two hundred."""
VOCABULARY_MULTIPLE = 64
"""The vocabulary of a model made on the spot is rounded up to one."""
_DTYPE_BYTES = {"float32": 4, "float64": 8}
"""Of `torch_dtype` in config.json; others have two."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is known of the model, and what there is to say of it."""

    shape: ModelShape | None
    """None where nothing is known: checks that need it have nothing to say."""
    dtype_bytes: int = 2
    """Of one parameter as it lies on disk."""
    findings: tuple[Finding, ...] = ()


def find_model(config: Config) -> Model:
    """The model that a configuration names."""
    match config.model:
        case TinyModel() as tiny:
            return _tiny(config, tiny)
        case HfModel(path=path) if (Path(path) / "config.json").exists():
            return _folder(path)
        case HfModel(path=path):
            return _by_name(path)


def num_parameters(shape: ModelShape) -> int:
    """How many numbers the model holds; a tied output layer is counted once."""
    return sum(_product(size) for size in parameter_shapes(shape).values())


def _folder(path: str) -> Model:
    key = "model.path"
    try:
        shape = read_shape(path)
    except DataError as error:
        return Model(shape=None, findings=(of_error(error, key=key),))
    raw: dict[str, Any] = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")
    findings = [ok(key, f"{path}: {_described(shape)}")]
    try:
        check_weights(path, parameter_shapes(shape))
    except DataError as error:
        findings.append(of_error(error, key=key))
    if not (Path(path) / "tokenizer.json").exists():
        findings.append(refused(key, f"{path}: tokenizer.json is missing"))
    return Model(shape=shape, dtype_bytes=_DTYPE_BYTES.get(dtype, 2), findings=tuple(findings))


def _by_name(path: str) -> Model:
    key = "model.path"
    name = Path(path).name
    known = [raw for known, raw in _table().items() if name.lower().startswith(known.lower())]
    if not known:
        text = f"{path}: no model folder there (config.json is missing), and no model of that name is known"
        return Model(shape=None, findings=(refused(key, text),))
    shape = shape_of(known[0], known[0]["model_type"])
    text = f"{path}: not on this machine; taken to be {_described(shape)}, by its name"
    return Model(shape=shape, findings=(warning(key, text),))


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def _tiny(config: Config, tiny: TinyModel) -> Model:
    vocab_size = NUM_WORDS if tiny.tokenizer == "words" else tiny.vocab_size
    shape = ModelShape(
        kind=tiny.shape,
        vocab_size=-(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_layers=tiny.num_layers,
        num_heads=tiny.num_heads,
        num_kv_heads=tiny.num_kv_heads,
        head_dim=tiny.head_dim,
        max_positions=tiny.max_positions,
        is_tied=tiny.tie,
        has_qkv_bias=tiny.shape == "qwen2",
        has_qk_norm=tiny.shape == "qwen3",
    )
    findings = list(_tiny_problems(config, tiny)) or [ok("model", f"made on the spot: {_described(shape)}")]
    return Model(shape=shape, dtype_bytes=4, findings=tuple(findings))


def _tiny_problems(config: Config, tiny: TinyModel) -> list[Finding]:
    problems: list[Finding] = []
    if tiny.num_heads % tiny.num_kv_heads:
        text = f"{tiny.num_heads} attention heads cannot share {tiny.num_kv_heads} key-value heads"
        problems.append(refused("model.num_kv_heads", text))
    if tiny.head_dim % 2:
        problems.append(refused("model.head_dim", f"rotary positions turn pairs, and {tiny.head_dim} is odd"))
    smallest = NUM_BYTES + len(ARPO_TAGS) + len(CONTROL_TOKENS)
    if tiny.tokenizer == "bpe" and tiny.vocab_size < smallest:
        text = f"a byte-level vocabulary needs {smallest} tokens at least, got {tiny.vocab_size}"
        problems.append(refused("model.vocab_size", text))
    if tiny.tokenizer == "words" and config.world is None:
        problems.append(refused("model.tokenizer", "'words' needs a [world] section"))
    if not config.sft:
        problems.append(warning("sft", "random weights without a cold start: rewards will hardly ever differ"))
    return problems


def _described(shape: ModelShape) -> str:
    number = num_parameters(shape)
    millions = f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"
    return (
        f"{shape.kind}, {millions} parameters, {shape.num_layers} layers of {shape.hidden_size}, "
        f"{shape.num_heads} heads, {shape.num_kv_heads} key-value heads"
    )


def _product(size: tuple[int, ...]) -> int:
    number = 1
    for extent in size:
        number *= extent
    return number

"""Tiny models made on the spot: a folder in Hugging Face form with random weights, for demos, benchmarks and tests.

Needs numpy and safetensors only, and the same seed writes the same bytes on every machine.
"""

from pathlib import Path

import numpy as np

from engine.inference.shape import ModelKind, ModelShape, parameter_shapes, write_config
from engine.types import Float32


def make_tiny_model(
    path: str | Path,
    *,
    kind: ModelKind = "qwen3",
    vocab_size: int = 1024,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    intermediate_size: int = 384,
    tie: bool = True,
    seed: int = 0,
    init_std: float = 0.02,
    embedding_std: float | None = None,
    qk_norm: float = 1.0,
    max_positions: int = 4096,
    rope_theta: float = 10_000.0,
    rms_eps: float = 1e-6,
    eos_token_ids: tuple[int, ...] = (),
) -> ModelShape:
    """Write `config.json` and `model.safetensors` (float32) into folder `path`, made where missing.

    Linear weights are normal with `init_std`, embeddings with `embedding_std` (default `init_std`), biases zero,
    norms one, query and key norms `qk_norm`. A larger `init_std` gives a peaked, input-dependent distribution:
    0.02 is nearly uniform over the vocabulary, 0.2 is far from it. Returns the shape.
    """
    shape = ModelShape(
        kind=kind,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        rope_theta=rope_theta,
        rms_eps=rms_eps,
        is_tied=tie,
        has_qkv_bias=kind == "qwen2",
        has_qk_norm=kind == "qwen3",
    )
    scale = init_std if embedding_std is None else embedding_std
    tensors = _draw(shape, seed=seed, init_std=init_std, embedding_std=scale, qk_norm=qk_norm)
    _write(Path(path), shape, tensors, eos_token_ids=eos_token_ids)
    return shape


def _write(folder: Path, shape: ModelShape, tensors: dict[str, Float32], *, eos_token_ids: tuple[int, ...]) -> None:
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, shape, eos_token_ids=eos_token_ids)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _draw(shape: ModelShape, *, seed: int, init_std: float, embedding_std: float, qk_norm: float) -> dict[str, Float32]:
    generator = np.random.Generator(np.random.PCG64(seed))
    tensors: dict[str, Float32] = {}
    for name, size in parameter_shapes(shape).items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            tensors[name] = np.full(size, qk_norm, dtype=np.float32)
        elif name.endswith(("norm.weight", ".bias")):
            tensors[name] = np.full(size, float(name.endswith("norm.weight")), dtype=np.float32)
        else:
            std = embedding_std if name == "model.embed_tokens.weight" else init_std
            tensors[name] = generator.standard_normal(size, dtype=np.float32) * np.float32(std)
    return tensors

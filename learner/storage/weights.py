"""Hugging Face tensors <-> Megatron parameters, exactly: a shard is made of whole tensors, and whole ones of shards.

Rules (TP axis in brackets): `linear_qkv` is q, k, v, each as [groups, rows of a group, ...], joined group by group [0];
`linear_fc1` is gate over up, each cut for itself [0]; `linear_proj` and `linear_fc2` are cut by columns [1]; the
embedding and the output layer by rows, padded with zeros to a multiple of the ranks [0]; norms are whole everywhere.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.inference.shape import ModelShape

Rule = Literal["whole", "vocab", "columns", "qkv", "gate_up"]


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """One Megatron parameter of a pipeline stage, and the tensors it is made of."""

    parameter: str
    """Name in the stage's model."""
    tensors: tuple[str, ...]
    """Hugging Face names."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the whole Hugging Face tensors."""
    rule: Rule
    is_exported: bool = True
    """False for the second copy of a tied embedding."""


def stage_layers(shape: ModelShape, stage: int, num_stages: int) -> range:
    """The layers of a pipeline stage, counted over the whole model."""
    count = shape.num_layers // num_stages
    return range(stage * count, (stage + 1) * count)


def stage_mappings(shape: ModelShape, *, stage: int = 0, num_stages: int = 1) -> list[Mapping]:
    """Every parameter of one pipeline stage."""
    vocab = (shape.vocab_size, shape.hidden_size)
    embedding = Mapping(
        parameter="embedding.word_embeddings.weight",
        tensors=("model.embed_tokens.weight",),
        shapes=(vocab,),
        rule="vocab",
    )
    mappings = [embedding] if stage == 0 else []
    for local, layer in enumerate(stage_layers(shape, stage, num_stages)):
        mappings += _layer_mappings(shape, f"decoder.layers.{local}", f"model.layers.{layer}")
    if stage == num_stages - 1:
        mappings.append(_norm("decoder.final_layernorm.weight", "model.norm.weight", shape.hidden_size))
        if not shape.is_tied:
            mappings.append(
                Mapping(parameter="output_layer.weight", tensors=("lm_head.weight",), shapes=(vocab,), rule="vocab")
            )
        elif stage > 0:
            mappings.append(
                Mapping(
                    parameter="output_layer.weight",
                    tensors=embedding.tensors,
                    shapes=(vocab,),
                    rule="vocab",
                    is_exported=False,
                )
            )
    return mappings


def _norm(parameter: str, tensor: str, size: int) -> Mapping:
    return Mapping(parameter=parameter, tensors=(tensor,), shapes=((size,),), rule="whole")


def _layer_mappings(shape: ModelShape, ours: str, theirs: str) -> list[Mapping]:
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = f"{theirs}.self_attn"
    qkv = tuple(f"{attention}.{name}_proj" for name in "qkv")
    mappings = [
        _norm(f"{ours}.input_layernorm.weight", f"{theirs}.input_layernorm.weight", hidden),
        Mapping(
            parameter=f"{ours}.self_attention.linear_qkv.weight",
            tensors=tuple(f"{name}.weight" for name in qkv),
            shapes=((query, hidden), (key, hidden), (key, hidden)),
            rule="qkv",
        ),
        Mapping(
            parameter=f"{ours}.self_attention.linear_proj.weight",
            tensors=(f"{attention}.o_proj.weight",),
            shapes=((hidden, query),),
            rule="columns",
        ),
        _norm(f"{ours}.pre_mlp_layernorm.weight", f"{theirs}.post_attention_layernorm.weight", hidden),
        Mapping(
            parameter=f"{ours}.mlp.linear_fc1.weight",
            tensors=(f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight"),
            shapes=((ffn, hidden), (ffn, hidden)),
            rule="gate_up",
        ),
        Mapping(
            parameter=f"{ours}.mlp.linear_fc2.weight",
            tensors=(f"{theirs}.mlp.down_proj.weight",),
            shapes=((hidden, ffn),),
            rule="columns",
        ),
    ]
    if shape.has_qkv_bias:
        mappings.append(
            Mapping(
                parameter=f"{ours}.self_attention.linear_qkv.bias",
                tensors=tuple(f"{name}.bias" for name in qkv),
                shapes=((query,), (key,), (key,)),
                rule="qkv",
            )
        )
    if shape.has_qk_norm:
        for name in "qk":
            mappings.append(
                _norm(
                    f"{ours}.self_attention.{name}_layernorm.weight", f"{attention}.{name}_norm.weight", shape.head_dim
                )
            )
    return mappings


def cut(mapping: Mapping, tensors: list[Tensor], *, shape: ModelShape, rank: int, size: int) -> Tensor:
    """The shard that tensor-parallel rank `rank` of `size` holds of whole tensors."""
    match mapping.rule:
        case "whole":
            return tensors[0]
        case "vocab":
            missing = -len(tensors[0]) % size
            full = (
                torch.cat((tensors[0], tensors[0].new_zeros(missing, tensors[0].shape[1]))) if missing else tensors[0]
            )
            return full.chunk(size, dim=0)[rank]
        case "columns":
            return tensors[0].chunk(size, dim=1)[rank]
        case "gate_up":
            return torch.cat([t.chunk(size, dim=0)[rank] for t in tensors])
        case "qkv":
            grouped = [t.unflatten(0, (shape.num_kv_heads, -1)) for t in tensors]
            return torch.cat(grouped, dim=1).flatten(0, 1).chunk(size, dim=0)[rank]


def shard_shape(mapping: Mapping, *, shape: ModelShape, size: int) -> tuple[int, ...]:
    """Of what each of `size` tensor-parallel ranks holds."""
    whole = [torch.empty(extents, device="meta") for extents in mapping.shapes]
    return tuple(cut(mapping, whole, shape=shape, rank=0, size=size).shape)


def join(mapping: Mapping, shards: list[Tensor], *, shape: ModelShape) -> list[Tensor]:
    """The whole tensors that these shards, in rank order, were cut from: the inverse of `cut`."""
    match mapping.rule:
        case "whole":
            return [shards[0]]
        case "vocab":
            return [torch.cat(shards)[: shape.vocab_size]]
        case "columns":
            return [torch.cat(shards, dim=1)]
        case "gate_up":
            halves = [s.chunk(2, dim=0) for s in shards]
            return [torch.cat([h[part] for h in halves]) for part in (0, 1)]
        case "qkv":
            grouped = torch.cat(shards).unflatten(0, (shape.num_kv_heads, -1))
            rows = [s[0] // shape.num_kv_heads for s in mapping.shapes]
            return [part.flatten(0, 1) for part in grouped.split(rows, dim=1)]

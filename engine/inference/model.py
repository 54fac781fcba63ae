"""Decoder: the forward pass of Qwen2, Qwen3 and Llama shapes for inference, over a flat batch of new tokens.

Plain torch with few operations a layer: QKV and gate/up are one matrix each, and everything between the two
projections of attention is one call of the attention seam. Weights are stored [in, out], which makes a float32
product of few rows about a quarter faster on a CPU than [out, in]; a tied head is a second copy in that form.

Axes: N new tokens, H hidden size, V vocabulary.
"""

# torch's stubs leave parts of many signatures open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engine.inference.attention import Norms, PagedAttention, Segments
from engine.inference.loading import copy_weights
from engine.inference.ops import Ops
from engine.inference.shape import ModelShape, parameter_shapes

ROWS_PER_PRODUCT = 32
"""Rows of every matrix product in deterministic mode."""


class _Layer(NamedTuple):
    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    norms: Norms
    output: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Decoder:
    """Weights and forward pass of one model; keys and values live behind the attention seam.

    `is_deterministic` computes every matrix product in blocks of exactly `ROWS_PER_PRODUCT` rows, padded with
    zeros: BLAS picks its order of summation by the number of rows, so a token's logits depend on the size of the batch
    otherwise (by about 1e-6 in float32). Small batches then cost as much as one of 32 rows.
    """

    def __init__(
        self,
        shape: ModelShape,
        attention: PagedAttention,
        ops: Ops,
        *,
        device: torch.device,
        dtype: torch.dtype,
        is_deterministic: bool = False,
    ) -> None:
        self.shape = shape
        self._attention = attention
        self._ops = ops
        self._is_deterministic = is_deterministic
        self._device = device
        hidden, qkv = shape.hidden_size, shape.query_size + 2 * shape.kv_size

        def empty(*size: int) -> Tensor:
            return torch.zeros(size, device=device, dtype=dtype)

        self._embedding = empty(shape.vocab_size, hidden)
        self._head = empty(hidden, shape.vocab_size)
        self._final_norm = empty(hidden)
        self._layers = [
            _Layer(
                input_norm=empty(hidden),
                qkv=empty(hidden, qkv),
                qkv_bias=empty(qkv) if shape.has_qkv_bias else None,
                norms=Norms(*((empty(shape.head_dim) if shape.has_qk_norm else None) for _ in range(2))),
                output=empty(shape.query_size, hidden),
                post_norm=empty(hidden),
                gate_up=empty(hidden, 2 * shape.intermediate_size),
                down=empty(shape.intermediate_size, hidden),
            )
            for _ in range(shape.num_layers)
        ]

    def load(self, path: str) -> None:
        """Copy the weights of a Hugging Face folder in place; raises `DataError`, changing nothing, where they differ
        in a name or a shape."""
        with torch.inference_mode():
            copy_weights(path, self._targets())
            if self.shape.is_tied:
                self._head.copy_(self._embedding.t())

    def _targets(self) -> dict[str, Tensor]:
        """Each parameter's Hugging Face name and the view of our storage that holds it, in its [out, in] form."""
        shape = self.shape
        query, kv, mid = shape.query_size, shape.kv_size, shape.intermediate_size
        views = {"model.embed_tokens.weight": self._embedding, "model.norm.weight": self._final_norm}
        views["lm_head.weight"] = self._head.t()
        for index, layer in enumerate(self._layers):
            prefix = f"model.layers.{index}."
            views[prefix + "input_layernorm.weight"] = layer.input_norm
            views[prefix + "post_attention_layernorm.weight"] = layer.post_norm
            for name, part in zip("qkv", layer.qkv.split((query, kv, kv), dim=1), strict=True):
                views[f"{prefix}self_attn.{name}_proj.weight"] = part.t()
            if layer.qkv_bias is not None:
                for name, part in zip("qkv", layer.qkv_bias.split((query, kv, kv)), strict=True):
                    views[f"{prefix}self_attn.{name}_proj.bias"] = part
            for name, norm in zip("qk", layer.norms, strict=True):
                if norm is not None:
                    views[f"{prefix}self_attn.{name}_norm.weight"] = norm
            views[prefix + "self_attn.o_proj.weight"] = layer.output.t()
            views[prefix + "mlp.gate_proj.weight"] = layer.gate_up[:, :mid].t()
            views[prefix + "mlp.up_proj.weight"] = layer.gate_up[:, mid:].t()
            views[prefix + "mlp.down_proj.weight"] = layer.down.t()
        return {name: views[name] for name in parameter_shapes(shape)}

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, segments: Segments, *, logit_rows: Tensor | None) -> Tensor:
        """Compute N tokens, write their keys and values, and return float32 logits [rows, V] of the tokens asked for.

        `token_ids` is an integer [N] in the order of the segments, `logit_rows` int64 indices into it, None for all.
        """
        eps, ops = self.shape.rms_eps, self._ops
        count = token_ids.numel()
        if self._is_deterministic:
            token_ids = functional.pad(token_ids, (0, -count % ROWS_PER_PRODUCT))
        self._attention.begin(segments)
        hidden = self._embedding.index_select(0, token_ids)
        for index, layer in enumerate(self._layers):
            normed = ops.rms_norm(hidden, layer.input_norm, eps)
            qkv = self._product(normed, layer.qkv)
            if layer.qkv_bias is not None:
                qkv += layer.qkv_bias
            hidden = self._add_product(hidden, self._attention.attend(index, qkv, layer.norms), layer.output)
            normed = ops.rms_norm(hidden, layer.post_norm, eps)
            gated = ops.gated_silu(self._product(normed, layer.gate_up))
            hidden = self._add_product(hidden, gated, layer.down)
        hidden = hidden[:count] if logit_rows is None else hidden.index_select(0, logit_rows)
        count = hidden.shape[0]
        if self._is_deterministic:
            hidden = functional.pad(hidden, (0, 0, 0, -count % ROWS_PER_PRODUCT))
        hidden = ops.rms_norm(hidden, self._final_norm, eps)
        return self._product(hidden, self._head)[:count].float()

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self._is_deterministic:
            return torch.mm(x, weight)
        out = x.new_empty((x.shape[0], weight.shape[1]))
        for begin in range(0, x.shape[0], ROWS_PER_PRODUCT):
            torch.mm(x[begin : begin + ROWS_PER_PRODUCT], weight, out=out[begin : begin + ROWS_PER_PRODUCT])
        return out

    def _add_product(self, residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if not self._is_deterministic:
            return residual.addmm_(x, weight)
        return residual.add_(self._product(x, weight))

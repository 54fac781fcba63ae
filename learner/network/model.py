"""The policy as a Megatron `GPTModel`: Qwen2, Qwen3 and Llama shapes, any tensor- and pipeline-parallel layout.

Ours in it: attention and rotary positions that read a layout (`learner.network.attention`), an RMS norm and a SwiGLU
that need neither Transformer Engine nor Apex (`learner.network.pointwise`), and an output layer applied to the scored
tokens only.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.inference.shape import ModelShape
from learner.config import LearnerConfig
from learner.mcore import (
    GPTModel,
    TransformerBlockSubmodules,
    TransformerConfig,
    finalize_model_grads,
    get_gpt_layer_local_spec,
    tensor_parallel,
)
from learner.network.attention import CoreAttention, Layout
from learner.network.pointwise import rms_norm, swiglu
from learner.parallel import Parallel
from learner.storage.weights import stage_mappings

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}


class RmsNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * weight, the mean over the last axis."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Megatron sums the gradients of such parameters over the tensor-parallel group
        self.weight.sequence_parallel = config.sequence_parallel
        self._eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.weight, eps=self._eps)


class SwiGlu(nn.Module):
    """The feed-forward layer's activation, as a module for Megatron's layer spec."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, gate_up: Tensor) -> Tensor:
        return swiglu(gate_up)


class PolicyModel(GPTModel):
    """A GPT model whose last stage gives logits [N, V / TP] at the layout's predictors, and nothing elsewhere."""

    def _postprocess(self, hidden_states: Tensor, packed_seq_params: Layout, **_: Any) -> Tensor:
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:
            hidden_states = tensor_parallel.gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False
            )
        scored = hidden_states.index_select(0, packed_seq_params.predictors)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits, _ = self.output_layer(scored, weight=weight)
        return logits.squeeze(1)


def padded_vocab_size(shape: ModelShape, tp_size: int) -> int:
    """The vocabulary rounded up to a multiple of the ranks; the extra rows are zero and have probability 0."""
    return -(-shape.vocab_size // tp_size) * tp_size


def transformer_config(shape: ModelShape, config: LearnerConfig) -> TransformerConfig:
    """Megatron's description of the model, of a layout that has been checked."""
    dtype = DTYPES[config.dtype]
    recompute = {
        "none": {},
        "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
        "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    }[config.recompute]
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.intermediate_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.rms_eps,
        qk_layernorm=shape.has_qk_norm,
        add_bias_linear=False,
        add_qkv_bias=shape.has_qkv_bias,
        gated_linear_unit=True,
        activation_func=functional.silu,
        use_te_activation_func=True,  # Megatron's word for an activation that the layer spec names
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=config.dtype == "bf16",
        tensor_model_parallel_size=config.tensor_parallel,
        pipeline_model_parallel_size=config.pipeline_parallel,
        sequence_parallel=config.sequence_parallel,
        use_cpu_initialization=True,
        perform_initialization=False,
        apply_rope_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        batch_p2p_sync=False,
        # our losses hold their whole denominator: Megatron shall divide neither by micro-batches nor by replicas
        calculate_per_token_loss=True,
        finalize_model_grads_func=lambda model, _num_tokens, **rest: finalize_model_grads(model, None, **rest),
        **recompute,
    )


def build_model(shape: ModelShape, config: LearnerConfig, parallel: Parallel) -> PolicyModel:
    """This rank's part of the model, on its device, with parameters that hold nothing yet."""
    megatron = transformer_config(shape, config)
    layer = get_gpt_layer_local_spec(qk_layernorm=shape.has_qk_norm, normalization="RMSNorm")
    layer.submodules.input_layernorm = RmsNorm
    layer.submodules.pre_mlp_layernorm = RmsNorm
    layer.submodules.mlp.submodules.activation_func = SwiGlu
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = CoreAttention
    if shape.has_qk_norm:
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    num_local = shape.num_layers // parallel.pp_size
    model = PolicyModel(
        config=megatron,
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=[layer] * num_local, layer_norm=RmsNorm),
        vocab_size=padded_vocab_size(shape, parallel.tp_size),
        max_sequence_length=shape.max_positions,
        pre_process=parallel.is_first_stage,
        post_process=parallel.is_last_stage,
        parallel_output=True,
        share_embeddings_and_output_weights=shape.is_tied,
        position_embedding_type="none",  # the layout has them
    )
    if model.post_process:
        model.output_layer.sequence_parallel = False  # `_postprocess` gathers the sequence before it selects from it
    model.to(parallel.device)
    _mark_shards(model, shape, parallel)
    return model


def _mark_shards(model: PolicyModel, shape: ModelShape, parallel: Parallel) -> None:
    """Say which parameters differ between tensor-parallel ranks: the gradient's norm counts all shards of those, and
    one copy of the others. Megatron's own initialisation would say so; it is left out."""
    for mapping in stage_mappings(shape, stage=parallel.pp_rank, num_stages=parallel.pp_size):
        parameter = model.get_parameter(mapping.parameter)
        for name in ("tensor_model_parallel", "partition_dim", "partition_stride"):
            if hasattr(parameter, name):
                delattr(parameter, name)
        tensor_parallel.set_tensor_model_parallel_attributes(
            parameter, is_parallel=mapping.rule != "whole", dim=1 if mapping.rule == "columns" else 0, stride=1
        )

"""AdamW behind Megatron's optimizer: one global norm, a clip, and an update that happens wholly or not at all."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from learner.config import LearnerConfig
from learner.mcore import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer


class PolicyOptimizer:
    """The optimiser of this rank's parameters (float32 masters where the model is bf16)."""

    def __init__(self, model: nn.Module, config: LearnerConfig) -> None:
        beta1, beta2 = config.betas
        self._config = config
        self._model = model
        self._optimizer: ChainedOptimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=config.lr,
                weight_decay=config.weight_decay,
                adam_beta1=beta1,
                adam_beta2=beta2,
                adam_eps=config.adam_eps,
                clip_grad=config.grad_clip,
                bf16=config.dtype == "bf16",
                params_dtype=torch.bfloat16 if config.dtype == "bf16" else torch.float32,
                use_distributed_optimizer=False,
            ),
            [model],
            use_gloo_process_groups=False,
        )
        for group in self._optimizer.param_groups:
            group["fused"] = True  # one kernel for all parameters; Megatron hands no such wish to torch's AdamW

    def zero_grad(self) -> None:
        """Forget the gradients, before the first row of an update."""
        self._model.zero_grad_buffer()
        self._optimizer.zero_grad()

    def prepare(self) -> float:
        """Hand the model's gradients to the optimiser and return their global norm, equal on all ranks."""
        self._optimizer.prepare_grads()
        grads = [g for inner in self._optimizer.chained_optimizers for g in inner.get_main_grads_for_grad_norm()]
        device = next(self._model.parameters()).device
        square = torch.zeros((), dtype=torch.float64, device=device)
        for grad in grads:
            square += torch.linalg.vector_norm(grad).double() ** 2
        group = self._optimizer.get_grad_stats_parallel_group()
        if group.size() > 1:
            dist.all_reduce(square, group=group)
        return math.sqrt(float(square)) if torch.isfinite(square) else math.inf

    @torch.no_grad()
    def apply(self, *, learning_rate: float, grad_norm: float) -> None:
        """Clip by `grad_norm`, and update. Call after `prepare`."""
        limit = self._config.grad_clip
        if 0 < limit < grad_norm:
            for grad in self._grads():
                grad.mul_(limit / grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
            group["weight_decay"] = self._config.weight_decay * group["wd_mult"]
        self._optimizer.step_with_ready_grads()

    def _grads(self) -> list[Tensor]:
        params = [p for inner in self._optimizer.chained_optimizers for p in inner.get_parameters()]
        return [p.grad for p in params if p.grad is not None]

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)

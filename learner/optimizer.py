"""AdamW behind Megatron's optimizer: one global norm, a clip, and an update that happens wholly or not at all.

With `distributed_optimizer` a replica keeps the state of its part of the parameters, and updates that: gradients are
scattered to these parts, and new weights gathered from them. The parts cut through parameters; so, in either form, what
an optimiser holds is told as slices of flat parameters.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from learner.config import LearnerConfig
from learner.mcore import ChainedOptimizer, DistributedOptimizer, OptimizerConfig, get_megatron_optimizer

KINDS = ("master", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each number: its value in the optimiser's precision, and the two moments of its gradient."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What this rank's optimiser holds of one parameter: its numbers from `start` on, in the order of memory."""

    parameter: str
    start: int
    tensors: dict[str, Tensor]
    """Flat, by kind. They are alive: who writes into them changes the optimiser (and the weights, unless in bf16)."""

    @property
    def stop(self) -> int:
        return self.start + self.tensors["master"].numel()


class PolicyOptimizer:
    """The optimiser of this rank's parameters (float32 masters where the model is bf16)."""

    def __init__(self, model: nn.Module, config: LearnerConfig) -> None:
        """`model` is wrapped for data parallelism, in the same way: with or without a distributed optimiser."""
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
                use_distributed_optimizer=config.distributed_optimizer,
            ),
            [model],
            use_gloo_process_groups=False,
        )
        for group in self._optimizer.param_groups:
            group["fused"] = True  # one kernel for all parameters; Megatron hands no such wish to torch's AdamW
        self._steps = [self._begin(inner, held) for inner in self._inner for held in inner.get_parameters()]
        self.slices = tuple(s for name, p in model.module.named_parameters() if (s := self._slice(name, p)))

    @property
    def _inner(self) -> list[Any]:
        return self._optimizer.chained_optimizers

    @staticmethod
    def _begin(inner: Any, held: Tensor) -> Tensor:
        """Make AdamW's state of one tensor, as its first update would, and return its count of updates."""
        state: dict[str, Tensor] = inner.optimizer.state[held]
        state["step"] = torch.zeros((), dtype=torch.float32, device=held.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(held.detach()), torch.zeros_like(held.detach())
        return state["step"]

    def _slice(self, name: str, parameter: nn.Parameter) -> Slice | None:
        """What is held of a parameter here; None where other replicas hold all of it."""
        inner = next(one for one in self._inner)
        start, held = 0, getattr(parameter, "main_param", parameter)
        if isinstance(inner, DistributedOptimizer):
            if parameter not in inner.model_param_gbuf_map:
                return None
            start = inner._get_model_param_range_map(parameter)["param"].start
            group, place = inner.model_param_group_index_map[parameter]
            held = inner.param_groups[group]["params"][place]
        tensors = {"master": held, **{kind: inner.state[held][kind] for kind in KINDS[1:]}}
        return Slice(parameter=name, start=start, tensors={k: t.detach().view(-1) for k, t in tensors.items()})

    @property
    def is_distributed(self) -> bool:
        """Whether replicas hold different slices; else they hold the same."""
        return self._config.distributed_optimizer

    @property
    def num_updates(self) -> int:
        """Updates so far, which AdamW's bias correction counts."""
        return int(self._steps[0]) if self._steps else 0

    @num_updates.setter
    def num_updates(self, number: int) -> None:
        for step in self._steps:
            step.fill_(number)

    def zero_grad(self) -> None:
        """Forget the gradients, before the first row of an update."""
        self._model.zero_grad_buffer()
        self._optimizer.zero_grad()

    def prepare(self) -> float:
        """Hand the model's gradients to the optimiser and return their global norm, equal on all ranks."""
        self._optimizer.prepare_grads()
        grads = [g for inner in self._inner for g in inner.get_main_grads_for_grad_norm()]
        device = next(self._model.parameters()).device
        square = torch.zeros((), dtype=torch.float64, device=device)
        for grad in grads:
            square += torch.linalg.vector_norm(grad).double() ** 2
        # with a distributed optimiser these are all ranks, and without it those that hold one model
        group = self._inner[0].get_grad_stats_parallel_group()
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
        held = [p for inner in self._inner for p in inner.get_parameters()]
        return [p.grad for p in held if p.grad is not None]

    def state(self) -> dict[str, Any]:
        """All that an update changes here, but for the weights: the living tensors, not copies."""
        return {"num_updates": self.num_updates, "slices": [s.tensors for s in self.slices]}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Take back the values of a copy of `state()`."""
        self.num_updates = state["num_updates"]
        for own, tensors in zip(self.slices, state["slices"], strict=True):
            for kind, tensor in tensors.items():
                own.tensors[kind].copy_(tensor)

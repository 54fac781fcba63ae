"""The model's pointwise operations with their gradients written out: RMS norm, SwiGLU and rotary positions.

Each elementary operation is a pass over memory, and autograd makes two or three more of it on the way back; for a
small model on a CPU that costs more than its matrix products. Here a gradient is the few passes its formula needs.
Nothing here knows Megatron. Axes: T tokens, H heads, D head size, F feed-forward size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(hidden: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) * weight over the last axis; computed in float32 at least, returned as `hidden.dtype`.

    (3, 4) with weight (1, 10) and no eps is (0.849, 11.31): the mean square is 12.5.
    """
    if hidden.is_cuda:  # one kernel there; torch has none for a CPU
        return functional.rms_norm(hidden, weight.shape, weight, eps)
    return _RmsNorm.apply(hidden, weight, eps)


class _RmsNorm(torch.autograd.Function):
    """With r = 1 / rms and rows of n: y = x r w, dw = sum g x r, dx = r (g w - x r^2 (g w . x) / n)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        x, w = _wide(hidden), _wide(weight)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return (x * w).mul_(scale).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        hidden, weight, scale = ctx.saved_tensors
        x, w, g = _wide(hidden), _wide(weight), _wide(grad)
        # a layer norm's gradient about a mean of 0, without the term through that mean, -r sum(g w) / n
        d_x, d_w, _ = torch.ops.aten.native_layer_norm_backward(
            g, x, weight.shape, torch.zeros_like(scale), scale, w, None, (True, True, False)
        )
        d_x += (g @ w).unsqueeze_(-1).mul_(scale).div_(x.shape[-1])
        return d_x.to(hidden.dtype), d_w.to(weight.dtype), None


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def swiglu(gate_up: Tensor) -> Tensor:
    """[..., 2 F] -> [..., F]: silu(gate) * up, the gate being the first half (Shazeer 2002.05202)."""
    return _SwiGlu.apply(gate_up)


class _SwiGlu(torch.autograd.Function):
    """y = silu(a) b: da = g b silu'(a) and db = g silu(a), written into one tensor."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        gate, up = gate_up.chunk(2, dim=-1)
        activated = functional.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        d_gate, d_up = result.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=d_gate)
        torch.mul(grad, activated, out=d_up)
        return result


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, H, D] with each pair (d, d + D / 2) rotated by its angle; `cos` and `sin`, [T, 1, D], are a `Rotation`'s.

    The pair (1, 0) at an angle of 90 degrees becomes (0, 1).
    """
    return _Rotate.apply(heads, cos, sin)


class _Rotate(torch.autograd.Function):
    """A gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _rotated(heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (heads * cos).addcmul_(heads.roll(heads.shape[-1] // 2, dims=-1), sin)

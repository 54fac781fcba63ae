"""Megatron without a GPU: inside this context, what it calls "the CUDA device" is the CPU.

Megatron spells its device as `torch.cuda.current_device()`, `device="cuda"` and `Tensor.cuda()`, and recognises dtypes
by type strings such as `torch.cuda.FloatTensor`; here those few names are answered in the CPU's name, and every other
operation of torch stays as fast as it is. A learner enters the context for each of its calls. It belongs into the
learner's process and does nothing where CUDA is available.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from learner.mcore import rng

_FACTORIES = ("empty", "empty_like", "full", "ones", "rand", "randn", "tensor", "zeros", "zeros_like")
"""The functions of torch to which a device is named as a string."""
_type_of = Tensor.type


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return made


def _itself(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


def _cuda_type(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    result = _type_of(tensor, *args, **kwargs)
    return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result


def _cpu(*_: Any, **__: Any) -> torch.device:
    return torch.device("cpu")


def _get_rng_state(*_: Any, **__: Any) -> Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(new_state)


def _nothing(*_: Any, **__: Any) -> None:
    return None


_REPLACEMENTS = (
    (torch.cuda, "current_device", _cpu),
    (torch.cuda, "synchronize", _nothing),
    (torch.cuda, "current_stream", _nothing),
    (torch.cuda, "get_rng_state", _get_rng_state),
    (torch.cuda, "set_rng_state", _set_rng_state),
    (torch.cuda, "manual_seed", torch.manual_seed),
    (rng, "_get_cuda_rng_state", _get_rng_state),
    (rng, "_set_cuda_rng_state", _set_rng_state),
    (Tensor, "cuda", _itself),
    (Tensor, "type", _cuda_type),
    *((torch, name, _on_cpu(getattr(torch, name))) for name in _FACTORIES),
)


@contextmanager
def cuda_means_cpu() -> Iterator[None]:
    """Let Megatron run on the CPU inside the block; may be nested."""
    if torch.cuda.is_available():
        yield
        return
    with ExitStack() as stack:
        for owner, name, replacement in _REPLACEMENTS:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield

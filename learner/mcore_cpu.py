"""Megatron without a GPU: inside this context, what it calls "the CUDA device" is the CPU.

Megatron spells its device as `torch.cuda.current_device()`, `device="cuda"` and `Tensor.cuda()`, and recognises dtypes
by type strings such as `torch.cuda.FloatTensor`; here those are answered in the CPU's name. A learner enters the
context for each of its calls, because the rewriting of arguments holds for one thread only. It belongs into the
learner's process and does nothing where CUDA is available.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from learner.mcore import rng


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites device arguments of every torch call in this thread."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs:
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs = {**kwargs, "device": torch.device("cpu")}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.", 1)
        return result


def _cpu(*_: Any, **__: Any) -> torch.device:
    return torch.device("cpu")


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
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
        stack.enter_context(_CudaMeansCpu())
        yield

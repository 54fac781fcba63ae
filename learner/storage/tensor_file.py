"""Safetensors files, written as their tensors come: the file never needs more memory than one of them.

The format is eight bytes with the length of a JSON header, the header (name to dtype, shape and place), and what the
tensors hold, one behind the other; so dtypes and shapes must be known before.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64"}
_ALIGNMENT = 8


class Hasher(Protocol):
    """What `hashlib` makes."""

    def update(self, data: memoryview, /) -> None: ...


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a tensor before it is there."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        number = self.dtype.itemsize
        for extent in self.shape:
            number *= extent
        return number


def write_tensors(
    file: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[Tensor], *, hasher: Hasher | None = None
) -> int:
    """Write the tensors, which come in the order of `specs`, and return the file's size; `hasher` sees every byte.

    A tensor may be on any device. Raises `OSError`, and then leaves a part of the file.
    """
    header = _header(specs)
    num_bytes = len(header)
    with file.open("wb", buffering=0) as out:
        _write_all(out.write, memoryview(header), hasher)
        for (name, spec), tensor in zip(specs.items(), tensors, strict=True):
            assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), name
            content = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8)
            _write_all(out.write, memoryview(content.numpy()), hasher)
            num_bytes += content.numel()
    return num_bytes


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, spec in specs.items():
        end = place + spec.num_bytes
        entries[name] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": (place, end)}
        place = end
    header = msgspec.json.encode(entries)
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _write_all(write: "Writes", content: memoryview, hasher: Hasher | None) -> None:
    if hasher is not None:
        hasher.update(content)
    while content:  # one call writes 2 GiB at most
        content = content[write(content) :]


class Writes(Protocol):
    """`write` of an unbuffered file."""

    def __call__(self, content: memoryview, /) -> int: ...

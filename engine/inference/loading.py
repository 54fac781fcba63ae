"""Copy a Hugging Face folder of safetensors into tensors that exist already, or refuse it and touch nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import DataError, boundary

if TYPE_CHECKING:
    from torch import Tensor

_IGNORED = ("rotary_emb.inv_freq", "lm_head.weight")
"""Suffixes of tensors that a checkpoint may hold and a model may have no place for (a tied head, RoPE tables)."""


def copy_weights(path: str | Path, targets: "Mapping[str, Tensor]") -> None:
    """Fill every tensor of `targets`, which maps Hugging Face names to (views of) parameters, from folder `path`.

    Names and shapes are compared before the first byte is copied. Raises `DataError` with one line naming the tensor
    and both shapes; `targets` are unchanged then. Other dtypes are converted.
    """
    import safetensors

    open_file: Any = safetensors.safe_open  # its stubs say nothing about what it opens
    with boundary(DataError, f"reading {path}"):
        homes = _survey(Path(path), {name: tuple(target.shape) for name, target in targets.items()})
        for file, names in homes.items():
            with open_file(file, framework="pt") as source:
                for name in names:
                    targets[name].copy_(source.get_tensor(name))


def check_weights(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise the `DataError` of `copy_weights` for a folder that does not hold these tensors; reads headers only."""
    with boundary(DataError, f"reading {path}"):
        _survey(Path(path), shapes)


def _survey(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[Path, list[str]]:
    """Which file holds which of the wanted tensors, all of them there and of their shapes."""
    import safetensors

    open_file: Any = safetensors.safe_open
    shapes: dict[str, tuple[int, ...]] = {}
    homes: dict[Path, list[str]] = {}
    for file in _files(path):
        with open_file(file, framework="np") as source:
            for name in source.keys():  # noqa: SIM118 - the reader is no mapping
                if name in wanted:
                    shapes[name] = tuple(source.get_slice(name).get_shape())
                    homes.setdefault(file, []).append(name)
                elif not name.endswith(_IGNORED):
                    raise DataError(f"{file}: tensor {name} has no place in the model")
    _check(path, shapes, wanted)
    return homes


def _files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.exists():
        table: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [path / name for name in sorted(set(table.values()))]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise DataError(f"{path}: holds no .safetensors file")
    return files


def _check(path: Path, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if name not in shapes:
            raise DataError(f"{path}: tensor {name} is missing, the model wants {list(shape)}")
        if shapes[name] != shape:
            raise DataError(f"{path}: tensor {name} is {list(shapes[name])}, the model wants {list(shape)}")

"""The pieces of a checkpoint: what a rank wrote of a parameter, and what a rank of any other layout reads of it.

A piece is a run of numbers of one tensor-parallel shard; with a distributed optimiser, replicas hold a run each. Its
key says what it is: `exp_avg/decoder.layers.3.mlp.linear_fc2.weight/1024` begins behind 1024 numbers of the shard of
layer 3, counted over the whole model. Layouts meet in whole Hugging Face tensors: pieces make shards, shards make whole
tensors (`weights.join`), and these the shards of the reader (`weights.cut`), one parameter after the other.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import DataError
from engine.inference.shape import ModelShape
from learner.storage.weights import Mapping, cut, join, shard_shape, stage_mappings


class _Piece(NamedTuple):
    start: int
    num: int
    file: Any
    key: str


def piece_key(kind: str, parameter: str, start: int) -> str:
    """The name of a piece; `parameter` is counted over the whole model."""
    return f"{kind}/{parameter}/{start}"


def whole_names(shape: ModelShape) -> dict[tuple[str, ...], str]:
    """The parameter's name in a model that is not divided, by the tensors it is made of: equal in every layout."""
    return {mapping.tensors: mapping.parameter for mapping in stage_mappings(shape)}


class ShardReader:
    """Reads shards out of the files of `tp_size` tensor-parallel ranks; a context manager.

    Raises `DataError` for a file that is none.
    """

    def __init__(self, files: Iterable[tuple[Path, int]], *, shape: ModelShape, tp_size: int) -> None:
        """`files` come with the tensor-parallel rank that wrote them. Reads their headers."""
        self._shape = shape
        self._tp_size = tp_size
        self._names = whole_names(shape)
        self._stack = ExitStack()
        self._pieces: dict[tuple[str, str, int], list[_Piece]] = {}
        for path, tp_rank in files:
            try:
                file: Any = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path}: {error}") from None
            for key in file.keys():  # noqa: SIM118 - the reader is no mapping
                kind, parameter, start = key.split("/")
                piece = _Piece(int(start), prod(file.get_slice(key).get_shape()), file, key)
                self._pieces.setdefault((kind, parameter, tp_rank), []).append(piece)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.start)

    def check(self, mapping: Mapping, kind: str) -> None:
        """Raise `DataError`, naming the parameter, where not every number of it is there exactly once."""
        size = prod(shard_shape(mapping, shape=self._shape, size=self._tp_size))
        for tp_rank in self._ranks(mapping):
            place = 0
            for piece in self._of(mapping, kind, tp_rank):
                if piece.start != place:
                    break
                place += piece.num
            if place != size:
                name = self._names[mapping.tensors]
                raise DataError(f"{kind} of {name}, shard {tp_rank} of {self._tp_size}: {place} of {size} numbers")

    def shard(self, mapping: Mapping, kind: str, *, tp_rank: int, tp_size: int) -> Tensor:
        """What rank `tp_rank` of `tp_size` holds of a parameter that has been checked."""
        if tp_size == self._tp_size:
            return self._written(mapping, kind, 0 if mapping.rule == "whole" else tp_rank)
        whole = join(mapping, [self._written(mapping, kind, r) for r in self._ranks(mapping)], shape=self._shape)
        return cut(mapping, whole, shape=self._shape, rank=tp_rank, size=tp_size)

    def _written(self, mapping: Mapping, kind: str, tp_rank: int) -> Tensor:
        pieces = [piece.file.get_tensor(piece.key).flatten() for piece in self._of(mapping, kind, tp_rank)]
        return torch.cat(pieces).view(shard_shape(mapping, shape=self._shape, size=self._tp_size))

    def _of(self, mapping: Mapping, kind: str, tp_rank: int) -> list[_Piece]:
        return self._pieces.get((kind, self._names[mapping.tensors], tp_rank), [])

    def _ranks(self, mapping: Mapping) -> range:
        """The ranks that wrote a parameter: all of them, or the first one what is equal on all."""
        return range(1 if mapping.rule == "whole" else self._tp_size)

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

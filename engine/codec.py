"""One wire format for every border: msgpack of typed Structs, arrays as raw bytes.

An array field is one-dimensional and its dtype is its annotation, so a frame carries nothing but the bytes: a
32,768-token sample decodes in about 11 microseconds, against 5,445 as a list. Decoded arrays are read-only views.
"""

from functools import cache
from typing import Any, Generic, TypeVar, cast, get_args, get_origin

import msgspec
import numpy as np

T = TypeVar("T")

_DTYPES = (np.dtype(np.int32), np.dtype(np.float32))


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        if array.ndim != 1:
            raise ValueError(f"arrays on the wire are one-dimensional, got shape {array.shape}")
        # The hook does not see the field it encodes for, and bytes of another width would decode to other numbers.
        if array.dtype not in _DTYPES:
            raise ValueError(f"arrays on the wire are int32 or float32, got {array.dtype}")
        return array.tobytes()
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


def _decode_array(kind: Any, value: Any) -> Any:
    return np.frombuffer(value, dtype=_dtype_of(kind))


@cache
def _dtype_of(kind: Any) -> "np.dtype[Any]":
    """Of an annotation such as `NDArray[np.int32]`."""
    if get_origin(kind) is not np.ndarray:
        raise NotImplementedError(f"cannot decode {kind}")
    return np.dtype(get_args(get_args(kind)[1])[0])


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_array)


def encode(value: Any) -> bytes:
    """Encode any Struct of this project."""
    return _ENCODER.encode(value)


class Decoder(Generic[T]):
    """Decode frames into one type (a Struct, or a tagged union of them); made once for each endpoint.

    `decode` raises `msgspec.ValidationError` (with the path of the field) on anything else.
    """

    def __init__(self, kind: type[T] | Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind, dec_hook=_decode_array)

    def decode(self, frame: bytes | memoryview) -> T:
        return self._decoder.decode(frame)

"""Frames: whatever is encoded comes back, and whatever does not fit its type is refused."""

import enum
import types
import typing
from typing import Any, Literal

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given

from engine import codec
from engine import types as vocabulary
from engine.events import AnyEvent
from engine.types import Completion, Prompt, ToolResult

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(),
    str: st.text(max_size=8),
    Any: JSON,
}
STRUCTS = [
    kind
    for kind in vars(vocabulary).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == vocabulary.__name__
]
EVENTS = [event for union in typing.get_args(AnyEvent) for event in (typing.get_args(union) or (union,))]


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation: what a field of that type may hold on the wire."""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if kind in LEAVES:
        return LEAVES[kind]
    if origin is np.ndarray:
        dtype = np.dtype(typing.get_args(arguments[1])[0])
        return st.binary(max_size=12).map(lambda raw: np.frombuffer(raw[: len(raw) // 4 * 4], dtype=dtype))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=2)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: values_of(hints[name]) for name in kind.__struct_fields__})


def contents(value: Any) -> Any:
    """A comparable picture of a value: arrays as dtype and bytes, floats bit by bit (NaN equals itself)."""
    match value:
        case msgspec.Struct():
            return type(value), {name: contents(getattr(value, name)) for name in value.__struct_fields__}
        case np.ndarray():
            return value.dtype, value.tobytes()
        case float():
            return np.float64(value).tobytes() if value == value else "nan"
        case tuple() | list():
            return type(value), [contents(item) for item in value]
        case dict():
            return {key: contents(item) for key, item in value.items()}
        case _:
            return type(value), value


def prompt(**fields: Any) -> Prompt:
    tokens = np.arange(3, dtype=np.int32)
    defaults = {"prompt_id": "e0-r1", "epoch": 0, "row": 1, "token_ids": tokens, "question": "?", "ground_truth": "!"}
    return Prompt(**{**defaults, **fields})


def frame(**fields: Any) -> bytes:
    """A frame of a prompt with some fields replaced by raw ones."""
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(codec.encode(prompt())), **fields})


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_type_comes_back_as_it_was(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    assert contents(codec.Decoder(kind).decode(codec.encode(value))) == contents(value)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_event_is_told_apart_in_the_union(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    event = data.draw(values_of(kind))
    assert contents(codec.Decoder(AnyEvent).decode(codec.encode(event))) == contents(event)


def test_an_array_costs_its_bytes_and_a_header() -> None:
    sizes = [len(codec.encode(prompt(token_ids=np.zeros(length, np.int32)))) for length in (0, 32_768)]
    assert sizes[1] - sizes[0] in range(4 * 32_768, 4 * 32_768 + 8)


def test_decoded_arrays_are_read_only() -> None:
    decoded = codec.Decoder(Prompt).decode(codec.encode(prompt()))
    with pytest.raises(ValueError, match="read-only"):
        decoded.token_ids[0] = 7


def test_a_strided_view_is_sent_as_what_it_shows() -> None:
    every_second = np.arange(6, dtype=np.int32)[::2]
    decoded = codec.Decoder(Prompt).decode(codec.encode(prompt(token_ids=every_second)))
    assert decoded.token_ids.tolist() == [0, 2, 4]


@pytest.mark.parametrize("dtype", ["int64", "float64", "float16", ">i4", "bool"])
def test_an_array_of_a_dtype_that_no_field_declares_is_not_sent(dtype: str) -> None:
    with pytest.raises(ValueError, match=r"int32 or float32, got"):
        codec.encode(prompt(token_ids=np.zeros(2, dtype)))


def test_an_array_of_two_dimensions_is_not_sent() -> None:
    with pytest.raises(ValueError, match=r"one-dimensional, got shape \(1, 2\)"):
        codec.encode(prompt(token_ids=np.zeros((1, 2), np.int32)))


@pytest.mark.parametrize("raw", [b"abc", "text", [1, 2], 3, None])
def test_what_is_no_array_of_whole_elements_is_refused_with_the_path(raw: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.token_ids"):
        codec.Decoder(Prompt).decode(frame(token_ids=raw))


def test_a_field_of_the_wrong_type_is_refused_with_the_path() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int`, got `str` - at `\$\.row`"):
        codec.Decoder(Prompt).decode(frame(row="1"))


def test_a_missing_field_is_refused_by_name() -> None:
    incomplete = codec.encode(ToolResult(name="search", text="found"))
    with pytest.raises(msgspec.ValidationError, match="missing required field `request_id`"):
        codec.Decoder(Completion).decode(incomplete)


def test_an_event_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'Forgotten'"):
        codec.Decoder(AnyEvent).decode(msgspec.msgpack.encode({"e": "Forgotten", "t": 0.0}))


def test_a_torn_frame_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        codec.Decoder(Prompt).decode(codec.encode(prompt())[:-1])


def test_a_value_without_a_wire_form_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot encode complex"):
        codec.encode(1j)

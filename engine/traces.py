"""Traces: tool-use conversations that somebody else wrote, for a supervised cold start."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.interfaces import Tokenizer
from engine.types import Int32


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A run of text that one party wrote: the policy, or the world around it."""

    text: str
    is_sampled: bool
    """True for what a policy would have sampled, and so is trained."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A supervised example; one line of a JSONL file."""

    prompt: list[dict[str, str]]
    """Messages with `role` and `content`."""
    segments: list[Segment]
    """What follows the header of the assistant's turn, in order, joined without anything in between.

    The end of the text is not among them: it is appended as a sampled token.
    """
    is_correct: bool = True


class PromptRenderer(Protocol):
    """What tokenising a trace needs of a renderer."""

    def render_prompt(self, messages: list[dict[str, str]]) -> Int32: ...


def read_traces(path: str | Path) -> Iterator[Trace]:
    """The traces of a JSONL file. Raises `DataError` naming the file and the line."""
    decoder = msgspec.json.Decoder(Trace)
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        yield decoder.decode(line)
                    except msgspec.DecodeError as error:
                        raise DataError(f"{path}: line {number}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def tokenise(trace: Trace, *, tokenizer: Tokenizer, renderer: PromptRenderer) -> tuple[Int32, NDArray[np.bool_]]:
    """The tokens of a trace, and which of them are trained: those of sampled segments and the final end of turn.

    Each segment is encoded on its own, as in a rollout, where policy and tools never share a token.
    """
    pieces: list[Int32] = [renderer.render_prompt(trace.prompt)]
    trained = [False]
    for segment in trace.segments:
        pieces.append(np.array(tokenizer.encode(segment.text), np.int32))
        trained.append(segment.is_sampled)
    pieces.append(np.array(tokenizer.eos_token_ids[:1], np.int32))
    trained.append(bool(trace.segments) and trace.segments[-1].is_sampled)
    mask = np.concatenate([np.full(p.size, t) for p, t in zip(pieces, trained, strict=True)])
    return np.concatenate(pieces), mask

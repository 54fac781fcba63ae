"""StopStrings: does the last token complete one of the strings that end a segment?

Decoding is slow and nearly no token can complete a stop string, so each set of strings gets a table over the
vocabulary: may this token end one of them? Only flagged tokens are decoded, with the few before them.
"""

import numpy as np
from numpy.typing import NDArray

from engine.errors import GeneratorError, RequestRefusedError, boundary
from engine.interfaces import Tokenizer
from engine.types import Int32

_REPLACEMENT = "\ufffd"
"""What a tokenizer writes for a token that holds only a part of a character."""


class StopStrings:
    """Tables for the sets of strings seen so far; number 0 is the empty set.

    For the set `("</call>",)` the table is true for every token whose text contains `>`.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._texts: list[str] | None = None
        self._numbers: dict[tuple[str, ...], int] = {(): 0}
        self.flags: NDArray[np.bool_] = np.zeros((1, vocab_size), dtype=np.bool_)
        """[sets, V]: the token may complete a string of the set."""

    def check(self, stops: tuple[str, ...]) -> None:
        """Raise `RequestRefusedError` where the strings cannot be looked for."""
        if stops and self._tokenizer is None:
            raise RequestRefusedError(f"stop strings {list(stops)} need a tokenizer, and this engine was given none")
        if not all(stops):
            raise RequestRefusedError("an empty stop string would end every segment at once")

    def number_of(self, stops: tuple[str, ...]) -> int:
        """The row of `flags` for a set of strings, made on first use."""
        if stops not in self._numbers:
            self.check(stops)
            row = np.array([_may_end(text, stops) for text in self._vocabulary()], dtype=np.bool_)
            # Tokens behind the tokenizer's vocabulary are padding of the embedding matrix and have no text.
            row = np.pad(row, (0, self._vocab_size - row.size))
            self._numbers[stops] = len(self._numbers)
            self.flags = np.vstack([self.flags, row])
        return self._numbers[stops]

    def is_complete(self, stops: tuple[str, ...], sampled: Int32) -> bool:
        """Whether the text of `sampled`, all tokens of the segment so far, has a stop string near its end."""
        assert self._tokenizer is not None, "checked when the request was submitted"
        # A token is at least a byte of text, so a string lies within as many tokens as it has bytes.
        longest = max(len(stop.encode()) for stop in stops)
        with boundary(GeneratorError, "decoding sampled tokens"):
            text = self._tokenizer.decode(sampled[-(longest + 4) :].tolist())
        return any(stop in text for stop in stops)

    def _vocabulary(self) -> list[str]:
        if self._texts is None:
            assert self._tokenizer is not None, "checked by the caller"
            size = min(self._tokenizer.vocab_size, self._vocab_size)
            with boundary(GeneratorError, "decoding the vocabulary"):
                self._texts = [self._tokenizer.decode([token]) for token in range(size)]
        return self._texts


def _may_end(text: str, stops: tuple[str, ...]) -> bool:
    for stop in stops:
        last = stop[-1]
        # A lone token may be shown without its spaces, and a part of a character as a replacement.
        if last in text or last.isspace() or (not last.isascii() and _REPLACEMENT in text):
            return True
    return False

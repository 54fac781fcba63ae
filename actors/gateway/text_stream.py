"""TextStream: sampled tokens as the text a client sees, piece by piece.

Held back until it is clear what it is: a part of a character, the beginning of a stop string, and everything from where
a tool call begins, which is given as a call, not as text.
"""

from collections.abc import Callable, Sequence

_WINDOW = 64
"""Tokens that are decoded again for each piece; more than any character or white space rule reaches back."""
_KEPT = 8
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one turn. `add` tokens as they come, then `end`; joined, the pieces are the visible text.

    Stop strings are not visible, nor is what comes behind one.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        hidden: Sequence[int] = (),
        stops: Sequence[str] = (),
        openings: Sequence[str] = (),
    ) -> None:
        """`hidden` tokens end turns and are not shown; `openings` begin tool calls."""
        self._decode = decode
        self._hidden = frozenset(hidden)
        self._stops = tuple(stops)
        self._marks = (*stops, *openings)
        self._ids: list[int] = []
        self._decoded = ""
        """What `_ids` came to so far, without a part of a character at its end."""
        self._held = ""
        self._mark = ""
        """The stop string or opening at the front of `_held`, once one was found."""

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that is visible now and was not before."""
        self._held += self._new_text(token_ids)
        if not self._mark:
            return self._release()
        return ""

    def end(self, *, has_calls: bool) -> str:
        """The rest: what was held for a call that is none, or for a stop string that did not come."""
        if self._mark in self._stops or (self._mark and has_calls):
            return ""
        rest, self._held = self._held, ""
        found = [place for stop in self._stops if (place := rest.find(stop)) >= 0]
        return rest[: min(found)] if found else rest

    def _new_text(self, token_ids: Sequence[int]) -> str:
        self._ids += [token for token in token_ids if token not in self._hidden]
        text = self._decode(self._ids)
        if text.endswith(_UNFINISHED):
            text = text.rstrip(_UNFINISHED)
        if len(text) <= len(self._decoded):
            return ""
        new, self._decoded = text[len(self._decoded) :], text
        if len(self._ids) > _WINDOW:
            tail = self._ids[-_KEPT:]
            short = self._decode(tail)
            if text.endswith(short) and not short.startswith(_UNFINISHED):
                self._ids, self._decoded = tail, short
        return new

    def _release(self) -> str:
        places = [(place, mark) for mark in self._marks if (place := self._held.find(mark)) >= 0]
        if places:
            place, self._mark = min(places)
        else:
            place = len(self._held) - self._num_waiting()
        shown, self._held = self._held[:place], self._held[place:]
        return shown

    def _num_waiting(self) -> int:
        """Characters at the end of what is held that may begin a mark."""
        longest = max((len(mark) for mark in self._marks), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(mark.startswith(self._held[-count:]) for mark in self._marks):
                return count
        return 0

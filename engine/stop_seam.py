"""StopSeam: finds a stop string that began before a request and ends inside it.

A server looks for stop strings in what it samples for one request. A branch at `probe_end`, or a retry, may begin in
the middle of one: `</sea` was inherited, `rch>` is sampled.
"""

from typing import Protocol

import msgspec
import numpy as np

from engine.types import Completion, Int32


class StopText(Protocol):
    """What the seam needs of a renderer."""

    @property
    def stop_strings(self) -> tuple[str, ...]: ...

    def text(self, token_ids: Int32) -> str: ...


class StopSeam:
    """Looks behind the places where a segment was begun anew; costs next to nothing elsewhere."""

    def __init__(self, renderer: StopText, segment: Int32) -> None:
        """`segment` is what was sampled since the last observation, before this request."""
        self._renderer = renderer
        self._longest = max((len(stop) for stop in renderer.stop_strings), default=0)
        self._tail = self._end_of(segment)
        """What was sampled before the next chunk, as far back as it can take part in a stop string."""
        self._left = self._longest if self._tail.size else 0
        """Sampled tokens that may still complete a string begun before a seam."""

    def cut(self, chunk: Completion) -> Completion:
        """The chunk as it is, or cut behind the token that completes a stop string across the seam."""
        if chunk.begins_anew:
            self._left = self._longest
        for count in range(1, min(self._left, chunk.token_ids.size) + 1):
            if self._completes(np.concatenate([self._tail, chunk.token_ids[:count]])):
                return msgspec.structs.replace(
                    chunk,
                    token_ids=chunk.token_ids[:count],
                    logprobs=chunk.logprobs[:count],
                    entropy_low=chunk.entropy_low[:count],
                    entropy_high=chunk.entropy_high[:count],
                    versions=chunk.versions[:count],
                    finish_reason="stop",
                )
        self._left = max(self._left - chunk.token_ids.size, 0)
        self._tail = self._end_of(np.concatenate([self._tail, chunk.token_ids]))
        return chunk

    def _end_of(self, token_ids: Int32) -> Int32:
        """A token of a stop string holds at least one of its characters, so older tokens cannot take part."""
        return token_ids[-self._longest :] if self._longest else token_ids[:0]

    def _completes(self, token_ids: Int32) -> bool:
        """Whether a stop string ends behind the tail; one that ended within it was seen when it was sampled."""
        before, text = len(self._renderer.text(self._tail)), self._renderer.text(token_ids)
        return any(text.find(stop, max(before - len(stop) + 1, 0)) >= 0 for stop in self._renderer.stop_strings)

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
        self._sampled = [segment]
        self._left = self._longest if segment.size else 0
        """Sampled tokens that may still complete a string begun before a seam."""

    def cut(self, chunk: Completion) -> Completion:
        """The chunk as it is, or cut behind the token that completes a stop string across the seam."""
        if chunk.begins_anew:
            self._left = self._longest
        if self._left and (count := self._completed_by(chunk.token_ids)):
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
        self._sampled.append(chunk.token_ids)
        return chunk

    def _completed_by(self, token_ids: Int32) -> int:
        """How many of these tokens complete a stop string; 0 where they do not. One that ended before them was seen
        when it was sampled."""
        # A token of a stop string holds at least one of its characters, so older tokens cannot take part.
        tail = np.concatenate(self._sampled)[-self._longest :]
        before = len(self._renderer.text(tail))
        for count in range(1, min(self._left, token_ids.size) + 1):
            text = self._renderer.text(np.concatenate([tail, token_ids[:count]]))
            if any(text.find(stop, max(before - len(stop) + 1, 0)) >= 0 for stop in self._renderer.stop_strings):
                return count
        return 0

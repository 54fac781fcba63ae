"""Pieces: the text of each token, so that a page can colour them one by one.

A tokenizer decodes sequences, not tokens: a character may be spread over several of them, and whether a space stands
before a word may depend on the word in front. So a piece is what one more token adds to the text of those before it.
"""

from collections.abc import Callable

from engine.types import Int32

DecodeText = Callable[[Int32], str]
"""Tokens to text, as `Renderer.text`."""

CONTEXT = 8
"""Tokens before a piece that its text may depend on."""
BROKEN = "\N{REPLACEMENT CHARACTER}"


def pieces_of(token_ids: Int32, text: DecodeText, *, start: int = 0) -> list[str]:
    """The text that each token from position `start` on adds; together they are the text behind `start`.

    Of a character spread over several tokens, the last one holds it and the others are empty.
    """
    found: list[str] = []
    anchor = max(start - CONTEXT, 0)
    # Tokens before `done` have their pieces; those behind it, up to the present one, hold a part of a character.
    done = start
    for position in range(start, token_ids.size):
        before, now = text(token_ids[anchor:done]), text(token_ids[anchor : position + 1])
        is_last = position + 1 == token_ids.size
        if now.endswith(BROKEN) and position - done < 4 and not is_last:
            found.append("")
            continue
        found.append(now[_shared(before, now) :])
        done = position + 1
        anchor = max(done - CONTEXT, anchor)
    return found


def _shared(before: str, now: str) -> int:
    """Characters with which both begin: all of `before`, unless its end reads otherwise now."""
    shared = 0
    while now[: shared + 1] == before[: shared + 1] and shared < len(before):
        shared += 1
    return shared

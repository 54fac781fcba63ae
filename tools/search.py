"""The `search` tool: BM25 over a local corpus, ranked the same way on every machine. The only door to `bm25s`."""

import asyncio
import logging
import re
from pathlib import Path
from typing import Annotated

import bm25s
import msgspec
import numpy as np
from msgspec import Meta

from engine.errors import ConfigError
from tools.schema import Tool, tool

logger = logging.getLogger(__name__)
# The library sets its own logger to DEBUG, and would be heard wherever a handler is.
logging.getLogger("bm25s").setLevel(logging.WARNING)

NO_RESULTS = "No search results found."
_WORD = re.compile(r"\w+")
_K1, _B = 0.9, 0.4
"""Usual for short passages; with more weight on length, a short page about someone else beats the right one."""
_NUM_NAMED_ROWS = 5
_INLINE_PASSAGES = 100_000
"""Up to this many a query takes well under 1 ms (0.13 ms at 40,000): less than a hop to a thread and back."""


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a corpus: a line of JSON. Other keys are ignored."""

    text: Annotated[str, Meta(min_length=1)]
    title: str = ""
    """Searched, not shown."""
    id: str | int = ""


class Corpus:
    """Passages and their BM25 index (Lucene's form, k1 = 0.9, b = 0.4, whole words in lower case)."""

    def __init__(self, passages: list[Passage], *, broken_rows: tuple[int, ...] = ()) -> None:
        """`passages` must hold at least one word between them."""
        self.passages = passages
        self.broken_rows = broken_rows
        """Line numbers, from 1, of rows that could not be used."""
        self._index = bm25s.BM25(method="lucene", k1=_K1, b=_B, backend="numpy")
        self._index.index([_words(f"{p.title} {p.text}") for p in passages], show_progress=False)

    def __repr__(self) -> str:
        return f"Corpus({len(self.passages)} passages, {len(self.broken_rows)} broken rows)"

    @classmethod
    def load(cls, path: str | Path) -> "Corpus":
        """Read a JSONL file and build the index: about 20 s for a million passages of 30 words.

        Empty lines are skipped. A row that is no JSON object with a `text` is left out, counted and named in one
        warning. Raises `ConfigError`, one line, where the file cannot be read or holds no usable passage.
        """
        decoder = msgspec.json.Decoder(Passage)
        passages: list[Passage] = []
        broken: list[int] = []
        try:
            with Path(path).open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    try:
                        passages.append(decoder.decode(line))
                    except (msgspec.DecodeError, UnicodeDecodeError):  # a ValidationError is a DecodeError
                        broken.append(number)
        except OSError as error:
            raise ConfigError(f"corpus {path}: {error.strerror}") from None
        if not any(_WORD.search(p.text) for p in passages):
            raise ConfigError(f"corpus {path}: no usable passage ({len(broken)} broken rows)")
        if broken:
            named = ", ".join(map(str, broken[:_NUM_NAMED_ROWS])) + (", ..." if len(broken) > _NUM_NAMED_ROWS else "")
            logger.warning("corpus %s: %d broken rows left out (lines %s)", path, len(broken), named)
        return cls(passages, broken_rows=tuple(broken))

    def search(self, query: str, *, top_k: int) -> list[Passage]:
        """The best `top_k` passages that share a word with the query, best first; equal scores in corpus order."""
        words = _words(query)
        if not words:
            return []
        scores = self._index.get_scores(words)
        top_k = min(top_k, len(scores))
        # Everything that ties with the last place is a candidate, so that the cut does not depend on the partition.
        threshold = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        rows = np.flatnonzero((scores >= threshold) & (scores > 0.0))
        order = np.argsort(-scores[rows], kind="stable")[:top_k]
        return [self.passages[row] for row in rows[order]]

    def answer(self, query: str, *, top_k: int, snippet_chars: int) -> str:
        """What the model reads: a line `Page i: snippet` for each hit, or that there is none.

        >>> Corpus([Passage(text="Ulm has a minster.")]).answer("minster", top_k=3, snippet_chars=6)
        'Page 1: Ulm ha'
        """
        hits = self.search(query, top_k=top_k)
        lines = [f"Page {i}: {' '.join(hit.text.split())[:snippet_chars]}" for i, hit in enumerate(hits, start=1)]
        return "\n".join(lines) or NO_RESULTS


def search_tool(
    corpus: Corpus, *, top_k: int = 10, snippet_chars: int = 1000, timeout_s: float = 30.0, max_concurrency: int = 16
) -> Tool:
    """The tool `search(query)`; a large corpus is searched in a worker thread, a small one on the loop."""
    is_inline = len(corpus.passages) <= _INLINE_PASSAGES

    @tool(timeout_s=timeout_s, max_concurrency=max_concurrency, is_pure=True)
    async def search(query: str) -> str:
        """Search the corpus. Returns the best pages, one line each."""
        if is_inline:
            return corpus.answer(query, top_k=top_k, snippet_chars=snippet_chars)
        return await asyncio.to_thread(corpus.answer, query, top_k=top_k, snippet_chars=snippet_chars)

    return search


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())

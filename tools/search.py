"""BM25 over a local corpus, ranked the same way on every machine, and kept on disk. The only door to `bm25s`."""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import bm25s
import msgspec
import numpy as np

from engine.errors import ConfigError
from tools.corpus_files import StoredPassages, read_corpus
from tools.passages import NO_RESULTS as NO_RESULTS
from tools.passages import Passage, show

logger = logging.getLogger(__name__)
# The library sets its own logger to DEBUG, and would be heard wherever a handler is.
logging.getLogger("bm25s").setLevel(logging.WARNING)

_WORD = re.compile(r"\w+")
_K1, _B = 0.9, 0.4
"""Usual for short passages; with more weight on length, a short page about someone else beats the right one."""
_INLINE_PASSAGES = 100_000
"""Up to this many a query takes well under 1 ms (0.13 ms at 40,000): less than a hop to a thread and back."""
_FORMAT = 1
_MANIFEST = "corpus.json"


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an index on disk was made of."""

    format: int
    source_bytes: int
    source_mtime_ns: int
    version: str
    broken_rows: tuple[int, ...]


class Corpus:
    """Passages and their BM25 index (Lucene's form, k1 = 0.9, b = 0.4, whole words in lower case): a `Retriever`."""

    def __init__(
        self, passages: Sequence[Passage], *, broken_rows: tuple[int, ...] = (), index: "bm25s.BM25 | None" = None
    ) -> None:
        """`passages` must hold at least one word between them; `index` is one that was made of them before."""
        self.passages = passages
        self.broken_rows = broken_rows
        """Numbers, from 1, of rows that could not be used."""
        self._index = index or _make_index(passages)
        self.version = "" if index is not None else _digest(passages)

    def __repr__(self) -> str:
        return f"Corpus({len(self.passages)} passages, {len(self.broken_rows)} broken rows)"

    @classmethod
    def load(cls, path: str | Path, *, index: str | Path = "") -> "Corpus":
        """Read a corpus file and build the index: about 20 s for a million passages of 30 words.

        With `index`, a folder, what is built is kept there, and opened in a moment the next time, unless the file
        has another size or time by then. Raises `ConfigError`, one line, where the file cannot be read, or holds no
        usable passage, or the folder cannot be written.
        """
        if not index:
            return cls._read(path)
        try:
            status = Path(path).stat()
            found = cls._open(Path(index), source=status)
            if found is None:
                found = cls._read(path)
                found._keep(Path(index), source=status)
            return found
        except OSError as error:
            raise ConfigError(f"corpus {path}: {error.filename}: {error.strerror}") from None

    @classmethod
    def _read(cls, path: str | Path) -> "Corpus":
        passages, broken = read_corpus(path)
        if not any(_WORD.search(p.text) for p in passages):
            raise ConfigError(f"corpus {path}: no usable passage ({len(broken)} broken rows)")
        return cls(passages, broken_rows=broken)

    @classmethod
    def _open(cls, folder: Path, *, source: os.stat_result) -> "Corpus | None":
        """The kept index, where it was made of this very file; None where it was not, or is torn."""
        try:
            manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=_Manifest)
            made_of = (manifest.format, manifest.source_bytes, manifest.source_mtime_ns)
            if made_of != (_FORMAT, source.st_size, source.st_mtime_ns):
                return None
            index = bm25s.BM25.load(str(folder), mmap=True, show_progress=False)
            corpus = cls(StoredPassages(folder), broken_rows=manifest.broken_rows, index=index)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, ValueError, KeyError, EOFError) as error:
            logger.warning("index %s: torn (%s); it is made anew", folder, error)
            return None
        corpus.version = manifest.version
        return corpus

    def _keep(self, folder: Path, *, source: os.stat_result) -> None:
        """Write the index beside its place and put it there in one step: other processes may do the same."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            self._index.save(str(fresh), show_progress=False)
            StoredPassages.write(fresh, self.passages)
            manifest = _Manifest(
                format=_FORMAT,
                source_bytes=source.st_size,
                source_mtime_ns=source.st_mtime_ns,
                version=self.version,
                broken_rows=self.broken_rows,
            )
            (fresh / _MANIFEST).write_bytes(msgspec.json.encode(manifest))
            if (folder / _MANIFEST).exists():
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                fresh.rename(folder)
            # Another process may have been faster: its index is as good.
            if not (folder / _MANIFEST).exists():
                logger.warning("index %s: holds something else, so the index is not kept", folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def search(self, query: str, *, top_k: int) -> list[Passage]:
        """The best `top_k` passages that share a word with the query, best first; equal scores in corpus order."""
        return [self.passages[row] for row in self.rank(query, top_k=top_k)]

    def rank(self, query: str, *, top_k: int) -> list[int]:
        """As `search`, but which rows they are."""
        words = _words(query)
        if not words:
            return []
        scores = self._index.get_scores(words)
        top_k = min(top_k, len(scores))
        # Everything that ties with the last place is a candidate, so that the cut does not depend on the partition.
        threshold = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        rows = np.flatnonzero((scores >= threshold) & (scores > 0.0))
        order = np.argsort(-scores[rows], kind="stable")[:top_k]
        return [int(row) for row in rows[order]]

    async def retrieve(self, query: str, *, top_k: int) -> list[Passage]:
        """As `search`; a large corpus is searched in a worker thread, a small one on the loop."""
        if len(self.passages) <= _INLINE_PASSAGES:
            return self.search(query, top_k=top_k)
        return await asyncio.to_thread(self.search, query, top_k=top_k)

    async def aclose(self) -> None:
        """Nothing to end."""

    def answer(self, query: str, *, top_k: int, snippet_chars: int) -> str:
        """What the model reads of a search; see `passages.show`."""
        return show(self.search(query, top_k=top_k), snippet_chars=snippet_chars)


def _make_index(passages: Sequence[Passage]) -> "bm25s.BM25":
    index = bm25s.BM25(method="lucene", k1=_K1, b=_B, backend="numpy")
    index.index([_words(f"{p.title} {p.text}") for p in passages], show_progress=False)
    return index


def _digest(passages: Sequence[Passage]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for passage in passages:
        digest.update(msgspec.json.encode(passage))
    return digest.hexdigest()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())

"""Dense retrieval: passages by the cosine of their vectors with the query's, alone or fused with BM25.

`Embedder` is the seam. Vectors of passages lie in a `.npy` file, one row a passage; where it is missing, the embedder
makes them once. Those of queries always come from the embedder, such as a server that speaks OpenAI's `/embeddings`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from engine.errors import ConfigError, ToolError
from engine.types import Float32
from tools.apart import apart
from tools.dense_config import DenseConfig
from tools.http import Http, HttpClient, HttpRequest
from tools.keys import bearer
from tools.passages import Passage, Retriever
from tools.schema import UnavailableError
from tools.search import Corpus

_BATCH = 64
_RRF_K = 60
"""Of reciprocal rank fusion, as its authors chose it (Cormack et al. 2009)."""
_FUSED_DEPTH = 10
"""Each ranking is read to this many times `top_k` before the two are fused."""


class Embedder(Protocol):
    """Texts to vectors, one row each; lengths do not matter, directions do."""

    async def embed(self, texts: Sequence[str]) -> Float32: ...

    async def aclose(self) -> None: ...


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class HttpEmbedder:
    """`POST {url}/embeddings` with `{"model", "input": [...]}`."""

    def __init__(self, http: Http, *, url: str, model: str, headers: Mapping[str, str]) -> None:
        """`headers` carry the key, where there is one."""
        self._http = http
        self._url = url.rstrip("/") + "/embeddings"
        self._model = model
        self._headers = headers

    async def embed(self, texts: Sequence[str]) -> Float32:
        body = {"model": self._model, "input": list(texts)}
        answer = await self._http.send(HttpRequest(url=self._url, method="POST", json=body, headers=self._headers))
        try:
            rows = sorted(msgspec.convert(answer.json(), _Embeddings).data, key=lambda row: row.index)
            vectors = np.array([row.embedding for row in rows], np.float32)
        except (msgspec.ValidationError, ValueError) as error:
            raise UnavailableError(f"{self._url}: no embeddings came back: {error}") from None
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise UnavailableError(f"{self._url}: {len(rows)} embeddings came back for {len(texts)} texts")
        return vectors

    async def aclose(self) -> None:
        await self._http.aclose()


class Dense:
    """`Retriever` by vectors, exhaustively: its time grows with the corpus."""

    def __init__(self, passages: Sequence[Passage], vectors: Float32, embedder: Embedder, *, version: str = "") -> None:
        """`vectors` has one row for each passage, of length 1."""
        self.version = f"dense {version}"
        self._passages = passages
        self._vectors = vectors
        self._embedder = embedder

    async def retrieve(self, query: str, *, top_k: int) -> list[Passage]:
        return [self._passages[row] for row in await self.rank(query, top_k=top_k)]

    async def rank(self, query: str, *, top_k: int) -> list[int]:
        """The rows of the nearest passages, nearest first; equal ones in the order of the corpus."""
        wanted = unit(await self._embedder.embed([query]))[0]
        if wanted.shape[0] != self._vectors.shape[1]:
            raise ToolError(f"the query has {wanted.shape[0]} dimensions, the corpus {self._vectors.shape[1]}")
        return await asyncio.to_thread(self._nearest, wanted, top_k)

    def _nearest(self, wanted: Float32, top_k: int) -> list[int]:
        scores = self._vectors @ wanted
        top_k = min(top_k, len(scores))
        threshold = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        rows = np.flatnonzero(scores >= threshold)
        return [int(row) for row in rows[np.argsort(-scores[rows], kind="stable")[:top_k]]]

    async def aclose(self) -> None:
        await self._embedder.aclose()


class Hybrid:
    """`Retriever` by both, fused by reciprocal ranks: a passage scores the sum of 1 / (60 + rank) over the two."""

    def __init__(self, corpus: Corpus, dense: Dense) -> None:
        """Both over the same passages."""
        self.version = f"hybrid {dense.version}"
        self._corpus = corpus
        self._dense = dense

    async def retrieve(self, query: str, *, top_k: int) -> list[Passage]:
        depth = top_k * _FUSED_DEPTH
        near = await self._dense.rank(query, top_k=depth)
        worded = await asyncio.to_thread(self._corpus.rank, query, top_k=depth)
        return [self._corpus.passages[row] for row in fuse([near, worded])[:top_k]]

    async def aclose(self) -> None:
        await self._dense.aclose()


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """All that is in any of the rankings, by the sum of reciprocal ranks; equal ones by number.

    >>> fuse([[7, 3], [3, 5]])
    [3, 7, 5]
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            scores[row] = scores.get(row, 0.0) + 1 / (_RRF_K + rank)
    return sorted(scores, key=lambda row: (-scores[row], row))


def unit(vectors: Float32) -> Float32:
    """Every row divided by its length; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0.0, 1.0, lengths), np.float32)


async def open_vectors(path: str | Path, passages: Sequence[Passage], embedder: Embedder) -> Float32:
    """The unit vectors of a corpus, made and written where the file is missing.

    Raises `ConfigError` for a file that is none of this corpus, and whatever the embedder raises.
    """
    path = Path(path)
    if not path.exists():
        batches = range(0, len(passages), _BATCH)
        texts = [[f"{p.title}\n{p.text}".strip() for p in passages[at : at + _BATCH]] for at in batches]
        vectors = unit(np.concatenate([await embedder.embed(batch) for batch in texts]))
        part = path.with_suffix(".part.npy")
        np.save(part, vectors)
        part.replace(path)
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"vectors {path}: {error}") from None
    if found.ndim != 2 or len(found) != len(passages):
        raise ConfigError(f"vectors {path}: {found.shape} for {len(passages)} passages")
    return unit(np.asarray(found, np.float32))


def open_dense(corpus: Corpus, config: DenseConfig) -> Retriever:
    """Retrieval as configured, over a corpus. Raises `ConfigError` for vectors that are not this corpus's, a missing
    key, or an embedder that cannot make the vectors that are missing."""
    headers = bearer(config.key_env)

    async def vectors() -> Float32:
        embedder = HttpEmbedder(HttpClient(), url=config.url, model=config.model, headers=headers)
        try:
            return await open_vectors(config.vectors, corpus.passages, embedder)
        except ToolError as error:
            raise ConfigError(f"vectors {config.vectors}: {error}") from None
        finally:
            await embedder.aclose()

    # One client a loop: the vectors may have been made on another one.
    embedder = HttpEmbedder(HttpClient(), url=config.url, model=config.model, headers=headers)
    dense = Dense(corpus.passages, apart(vectors), embedder, version=f"{config.model} {corpus.version}")
    return dense if config.mode == "dense" else Hybrid(corpus, dense)

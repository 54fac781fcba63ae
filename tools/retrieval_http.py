"""The retriever over HTTP that Search-R1 made common: `POST /retrieve` with queries, and passages with scores back."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tools.http import Http, HttpRequest
from tools.passages import Passage, PassageRow, ToolLimits
from tools.schema import UnavailableError


class RetrieverConfig(ToolLimits, frozen=True, kw_only=True):
    """A retriever server behind the `search` tool: the section `[tools.retriever]`."""

    url: str
    """The whole address, such as `http://127.0.0.1:8000/retrieve`."""
    version: str = ""
    """Part of what results are cached by: another word for another corpus behind the same address."""


class _Scored(msgspec.Struct):
    document: PassageRow
    score: float = 0.0


class _Retrieved(msgspec.Struct):
    result: list[list[dict[str, Any]]]


class HttpRetriever:
    """`Retriever` of one query a request; documents with and without scores are understood."""

    def __init__(self, http: Http, *, url: str, version: str = "") -> None:
        self.version = f"{url} {version}"
        self._http = http
        self._url = url

    async def retrieve(self, query: str, *, top_k: int) -> Sequence[Passage]:
        body = {"queries": [query], "topk": top_k, "return_scores": True}
        answer = await self._http.send(HttpRequest(url=self._url, method="POST", json=body))
        try:
            (documents,) = msgspec.convert(answer.json(), _Retrieved).result
            rows = [
                msgspec.convert(d, _Scored).document if "document" in d else msgspec.convert(d, PassageRow)
                for d in documents
            ]
        except (msgspec.ValidationError, ValueError) as error:
            raise UnavailableError(f"{self._url}: no passages came back: {error}") from None
        return [passage for row in rows[:top_k] if (passage := row.passage) is not None]

    async def aclose(self) -> None:
        await self._http.aclose()

"""Passages: what a search finds, however it is found; and the `search` tool in front of whatever finds it.

`Retriever` is the seam: BM25 over a local corpus, vectors, both, a retriever over HTTP, and the web stand behind it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from engine.config import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section
from tools.schema import Tool, tool

NO_RESULTS = "No search results found."


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be found."""

    text: Annotated[str, Meta(min_length=1)]
    title: str = ""
    """Searched, not shown."""
    id: str | int = ""
    """Of a page of the web, its address."""


class PassageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A passage as files and retrievers write it: with `text`, or with `contents` whose first line is the title in
    quotation marks. Other keys are ignored."""

    text: str = ""
    contents: str = ""
    title: str = ""
    id: str | int = ""

    @property
    def passage(self) -> Passage | None:
        """None where there is no text."""
        title, text = self.title, self.text
        if not text and self.contents:
            first, _, rest = self.contents.partition("\n")
            title, text = (title or first.strip().strip('"'), rest) if rest.strip() else (title, self.contents)
        return Passage(text=text, title=title, id=self.id) if text else None


class Retriever(Protocol):
    """Finds passages."""

    version: str
    """Changes when equal queries may begin to find something else."""

    async def retrieve(self, query: str, *, top_k: int) -> Sequence[Passage]:
        """The best `top_k`, best first; fewer where no more is found.

        Raises `UnavailableError` where its host is down.
        """
        ...

    async def aclose(self) -> None: ...


class ToolLimits(Section, frozen=True, kw_only=True):
    """How a search is run and shown: part of the section of each kind of search."""

    top_k: Positive = 10
    """Passages of one search."""
    snippet_chars: Positive = 1000
    """Characters of a passage that the model sees."""
    timeout_s: PositiveFloat = 30.0
    """Deadline of one search, its retries included."""
    max_concurrency: Positive = 16
    """Searches at one time."""
    calls_per_s: NonNegativeFloat = 0.0
    """0 is no limit."""
    max_retries: NonNegative = 2
    """Where the host does not answer."""


def search_tool(retriever: Retriever, limits: ToolLimits | None = None, *, host: str = "") -> Tool:
    """The tool `search(query)`. Quotation marks are taken out of a query, as ARPO does: no exact search is meant."""
    limits = limits or ToolLimits()

    @tool(
        timeout_s=limits.timeout_s,
        max_concurrency=limits.max_concurrency,
        calls_per_s=limits.calls_per_s,
        max_retries=limits.max_retries,
        host=host,
        version=f"{retriever.version} {limits.top_k} {limits.snippet_chars}",
        is_pure=True,
        aclose=retriever.aclose,
    )
    async def search(query: str) -> str:
        """Search the corpus. Returns the best pages, one line each."""
        hits = await retriever.retrieve(query, top_k=limits.top_k)
        return show(hits, snippet_chars=limits.snippet_chars)

    def check(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"query": plain_query(search.check(arguments)["query"])}

    return dataclasses.replace(search, check=check)


def plain_query(query: str) -> str:
    """What is searched for, and what equal searches are known by."""
    return query.replace('"', "").strip()


def show(hits: Sequence[Passage], *, snippet_chars: int) -> str:
    """What the model reads: a line `Page i: snippet` for each hit, or that there is none.

    >>> show([Passage(text="Ulm has a minster.")], snippet_chars=6)
    'Page 1: Ulm ha'
    """
    lines = [f"Page {i}: {' '.join(hit.text.split())[:snippet_chars]}" for i, hit in enumerate(hits, start=1)]
    return "\n".join(lines) or NO_RESULTS

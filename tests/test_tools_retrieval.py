"""Retrieval of every kind behind one tool: kept indices, vectors, a Search-R1 server, the web, ARPO's cache."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from engine import config as configuration
from engine.clock import run_virtual
from engine.errors import ConfigError
from engine.types import Float32, ToolCall, ToolResult
from tools.config import ToolsConfig, build_executor
from tools.corpus_files import StoredPassages
from tools.dense import Dense, Hybrid, fuse, open_vectors, unit
from tools.local_site import Answer, LocalSite, Page, Visit
from tools.passages import Passage
from tools.search import Corpus

ROWS = [
    {"text": "Ulm has the tallest minster.", "title": "Ulm", "id": 1},
    {"text": "Bonn lies on the Rhine.", "title": "Bonn"},
    {"text": "Cologne lies on the Rhine.", "title": "Cologne"},
]


def write(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# -- corpora on disk --------------------------------------------------------------------------------------------------


def test_a_kept_index_answers_as_the_one_it_was_made_from(tmp_path: Path) -> None:
    source, index = write(tmp_path / "c.jsonl", [*ROWS, {"text": ""}]), tmp_path / "kept" / "index"
    made, opened = Corpus.load(source, index=index), Corpus.load(source, index=index)
    assert isinstance(opened.passages, StoredPassages)
    assert not isinstance(made.passages, StoredPassages)
    for query in ("minster", "the Rhine", "cologne ulm", "nothing", ""):
        assert opened.search(query, top_k=2) == made.search(query, top_k=2)
    assert (opened.version, opened.broken_rows, len(opened.passages)) == (made.version, (4,), 3)
    assert opened.passages[-1] == made.passages[2]
    assert list(opened.passages[:2]) == list(made.passages[:2])
    assert [p.name for p in index.parent.iterdir()] == ["index"], "nothing half-made stays"


def test_another_file_or_a_torn_index_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, index = write(tmp_path / "c.jsonl", ROWS), tmp_path / "index"
    first = Corpus.load(source, index=index)
    write(tmp_path / "c.jsonl", [*ROWS, {"text": "Mainz lies on the Rhine too."}])
    second = Corpus.load(source, index=index)
    assert (len(second.passages), second.version != first.version) == (4, True)
    (index / "corpus.json").write_text("{torn")
    assert len(Corpus.load(source, index=index).passages) == 4
    assert "torn" in caplog.messages[0]
    assert isinstance(Corpus.load(source, index=index).passages, StoredPassages)


def test_parquet_and_the_form_of_search_r1_are_read(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"id": ["a", "b", "c"], "contents": ['"Ulm"\nIt has a minster.', "only one line", None], "x": [1, 2, 3]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    corpus = Corpus.load(tmp_path / "c.parquet")
    assert list(corpus.passages) == [
        Passage(text="It has a minster.", title="Ulm", id="a"),
        Passage(text="only one line", id="b"),
    ]
    assert corpus.broken_rows == (3,)


def test_a_parquet_file_that_is_none_or_has_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_text("no parquet")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "x.parquet")
    for name, reason in (("torn", "Parquet"), ("x", "no column text or contents"), ("none", "No such file")):
        with pytest.raises(ConfigError, match=reason) as error:
            Corpus.load(tmp_path / f"{name}.parquet")
        assert "\n" not in str(error.value)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    corpus = Corpus.load(write(tmp_path / "c.jsonl", ROWS), index=tmp_path / "notes")
    assert len(corpus.search("rhine", top_k=5)) == 2
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["diary.txt"]
    assert caplog.messages == [f"index {tmp_path / 'notes'}: holds something else, so the index is not kept"]


def test_an_index_that_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    source = write(tmp_path / "c.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"corpus .*c.jsonl: .*: Not a directory"):
        Corpus.load(source, index=Path(source) / "index")


# -- vectors ----------------------------------------------------------------------------------------------------------


class Directions:
    """An embedder that knows three words, one for each axis."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def embed(self, texts: Sequence[str]) -> Float32:
        self.batches.append(len(texts))
        words = ("minster", "bonn", "cologne")
        return np.array([[float(w in text.lower()) * 5 for w in words] for text in texts], np.float32)

    async def aclose(self) -> None:
        pass


def test_the_nearest_vectors_come_first_and_equal_ones_in_order() -> None:
    vectors = unit(np.array([[1, 0], [3, 3], [0, 2], [1, 0]], np.float32))
    passages = [Passage(text=name) for name in "abcd"]

    class Right(Directions):
        async def embed(self, texts: Sequence[str]) -> Float32:
            return np.array([[7.0, 0.0]], np.float32)

    found = asyncio.run(Dense(passages, vectors, Right()).retrieve("q", top_k=3))
    assert [p.text for p in found] == ["a", "d", "b"]


def test_vectors_are_made_once_and_must_be_those_of_the_corpus(tmp_path: Path) -> None:
    passages = [Passage(text=f"{i} minster") for i in range(130)]
    path, embedder = tmp_path / "v.npy", Directions()

    async def main() -> None:
        made = await open_vectors(path, passages, embedder)
        assert embedder.batches == [64, 64, 2]
        assert np.array_equal(made, await open_vectors(path, passages, embedder))
        assert np.array_equal(made[0], [1.0, 0.0, 0.0])
        assert len(embedder.batches) == 3
        with pytest.raises(ConfigError, match=r"\(130, 3\) for 129 passages"):
            await open_vectors(path, passages[:-1], embedder)
        path.write_text("no array")
        with pytest.raises(ConfigError, match="vectors"):
            await open_vectors(path, passages, embedder)

    asyncio.run(main())


def test_both_rankings_count_where_they_are_fused() -> None:
    assert fuse([[1, 2, 3], [3, 4]]) == [3, 1, 2, 4]
    assert fuse([[], []]) == []
    corpus = Corpus([Passage(text=row["text"], title=row["title"]) for row in ROWS])  # type: ignore[arg-type]
    vectors = asyncio.run(Directions().embed([f"{p.title} {p.text}" for p in corpus.passages]))
    hybrid = Hybrid(corpus, Dense(corpus.passages, unit(vectors), Directions()))
    found = asyncio.run(hybrid.retrieve("Cologne, Rhine", top_k=2))
    assert [p.title for p in found] == ["Cologne", "Bonn"]


# -- over HTTP --------------------------------------------------------------------------------------------------------


def tools_config(**sections: object) -> ToolsConfig:
    return configuration.decode(sections, ToolsConfig, source="test")


def searched(
    answer: Answer, section: Callable[[str], dict[str, object]], *queries: str
) -> tuple[list[ToolResult], list[Visit]]:
    """What the configured search says, and what its server was asked."""

    async def main() -> tuple[list[ToolResult], list[Visit]]:
        async with LocalSite(answer) as site, build_executor(tools_config(**section(site.url))) as executor:
            results = [await executor.call(ToolCall(name="search", arguments={"query": q})) for q in queries]
            return results, site.visits

    return asyncio.run(main())


DOCUMENTS = [{"id": "1", "contents": '"Ulm"\nIt has a minster.'}, {"id": "2", "contents": '"Bonn"\nOn the Rhine.'}]


@pytest.mark.parametrize("with_scores", [True, False])
def test_a_search_r1_server_is_asked_and_understood(with_scores: bool) -> None:
    found = [{"document": d, "score": 0.5} for d in DOCUMENTS] if with_scores else DOCUMENTS
    (result, again), visits = searched(
        lambda seen: Page(content={"result": [found]}),
        lambda url: {"retriever": {"url": f"{url}/retrieve", "top_k": 2}},
        'which "minster"?',
        "which minster?",
    )
    assert result.text == "Page 1: It has a minster.\nPage 2: On the Rhine."
    assert again.outcome == "cached"
    assert [v.json() for v in visits] == [{"queries": ["which minster?"], "topk": 2, "return_scores": True}]
    assert (visits[0].method, visits[0].path) == ("POST", "/retrieve")


@pytest.mark.parametrize("content", [{"result": []}, {"results": [[]]}, {"result": [[3]]}, "<html>"])
def test_a_retriever_that_says_something_else_is_at_fault(content: object) -> None:
    (result,), visits = searched(
        lambda seen: Page(content=content),
        lambda url: {"retriever": {"url": url, "max_retries": 1}},
        "q",
    )
    assert result.status == "error"
    assert len(visits) == 2, "it was tried again"


def test_embeddings_of_an_openai_server_rank_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_KEY", "s3cret")
    corpus = write(tmp_path / "c.jsonl", ROWS)

    def answer(seen: Visit) -> Page:
        words = ("minster", "bonn", "cologne")
        data = [
            {"index": index, "embedding": [float(word in text) for word in words]}
            for index, text in enumerate(seen.json()["input"])
        ]
        return Page(content={"data": data[::-1]})

    dense = {"vectors": str(tmp_path / "v.npy"), "model": "m", "key_env": "EMBED_KEY", "mode": "dense"}
    with pytest.raises(ConfigError, match=r"vectors .*v.npy: .*- at \$.tools.search.corpus"):
        build_executor(tools_config(search={"corpus": corpus, "dense": dense | {"url": "http://127.0.0.1:9/v1"}}))
    np.save(tmp_path / "v.npy", np.eye(3, dtype=np.float32))
    (result,), visits = searched(
        answer,
        lambda url: {"search": {"corpus": corpus, "top_k": 1, "dense": dense | {"url": f"{url}/v1"}}},
        "what of bonn",
    )
    assert result.text == "Page 1: Bonn lies on the Rhine."
    assert visits[-1].path == "/v1/embeddings"
    assert visits[-1].json() == {"model": "m", "input": ["what of bonn"]}
    assert visits[-1].headers["authorization"] == "Bearer s3cret"


# -- the web ----------------------------------------------------------------------------------------------------------

ORGANIC = [
    {"title": "Ulm", "link": "https://ulm.example", "snippet": "A minster.", "description": "A minster."},
    {"title": "no text", "link": "https://x.example"},
    {"title": "Bonn", "link": "https://bonn.example", "snippet": "The Rhine.", "description": "The Rhine."},
]
WEB = [{"title": r["title"], "url": r["link"], "description": r.get("snippet")} for r in ORGANIC]
SEARXNG = [{"title": r["title"], "url": r["link"], "content": r.get("snippet", "")} for r in ORGANIC]
ANSWERS: dict[str, object] = {
    "serper": {"searchParameters": {"q": "x"}, "answerBox": {"answer": "x"}, "organic": ORGANIC},
    "brave": {"type": "search", "web": {"type": "search", "results": WEB}},
    "searxng": {"query": "x", "results": SEARXNG, "infoboxes": []},
    "brightdata": {"general": {"search_engine": "bing"}, "organic": ORGANIC},
}
KEYS = {"serper": "SERPER_API_KEY", "brave": "BRAVE_API_KEY", "brightdata": "BRIGHTDATA_API_KEY"}


def web(provider: str) -> Callable[[str], dict[str, object]]:
    zone = {"zone": "serp"} if provider == "brightdata" else {}
    return lambda url: {"web_search": {"provider": provider, "url": url, "top_k": 5, **zone}}


@pytest.mark.parametrize("provider", ANSWERS)
def test_every_provider_is_asked_in_its_way_and_read_in_ours(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if provider in KEYS:
        monkeypatch.setenv(KEYS[provider], "s3cret")
    (result,), (seen,) = searched(lambda seen: Page(content=ANSWERS[provider]), web(provider), 'an "exact" question')
    assert result.text == "Page 1: A minster.\nPage 2: The Rhine."
    assert "s3cret" not in seen.path + str(seen.query) + seen.body.decode()
    match provider:
        case "serper":
            assert (seen.method, seen.path, seen.headers["x-api-key"]) == ("POST", "/search", "s3cret")
            assert seen.json() == {"q": "an exact question", "num": 5, "gl": "us", "hl": "en"}
        case "brave":
            assert (seen.path, seen.headers["x-subscription-token"]) == ("/res/v1/web/search", "s3cret")
            assert (seen.query["q"], seen.query["count"]) == ("an exact question", "5")
        case "searxng":
            assert (seen.path, seen.query["format"], seen.query["q"]) == ("/search", "json", "an exact question")
        case _:
            assert (seen.path, seen.headers["authorization"]) == ("/request", "Bearer s3cret")
            body = seen.json()
            assert (body["zone"], body["format"]) == ("serp", "raw")
            assert body["url"].startswith("https://www.bing.com/search?q=an+exact+question&")
            assert "brd_json=1" in body["url"]


@pytest.mark.parametrize(("provider", "empty"), [("serper", {}), ("brave", {"type": "search"}), ("searxng", {})])
def test_a_provider_that_finds_nothing_says_so(provider: str, empty: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in KEYS.values():
        monkeypatch.setenv(variable, "k")
    (result,), _ = searched(lambda seen: Page(content=empty), web(provider), "q")
    assert (result.status, result.text) == ("ok", "No search results found.")


@pytest.mark.parametrize("content", [[], {"organic": 3}, {"organic": {"a": 1}}])
def test_a_provider_that_says_something_else_is_at_fault(content: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "k")
    (result,), _ = searched(
        lambda seen: Page(content=content),
        lambda url: {"web_search": {"provider": "serper", "url": url, "max_retries": 0}},
        "q",
    )
    assert (result.status, result.text) == ("error", "serper: what came back holds no results")


def test_what_the_user_forgot_is_one_line_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    monkeypatch.setenv("BRIGHTDATA_API_KEY", "k")
    for section, reason in (
        ({"provider": "serper"}, "the environment variable SERPER_API_KEY is not set"),
        ({"provider": "searxng"}, "searxng has no address of its own: url is needed"),
        ({"provider": "brightdata"}, "brightdata needs the name of a zone"),
    ):
        with pytest.raises(ConfigError) as error:
            build_executor(tools_config(web_search=section))
        assert str(error.value) == f"{reason} - at $.tools.web_search"


def test_two_searches_at_once_are_refused(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", ROWS)
    with pytest.raises(ConfigError, match="two tools are called 'search'"):
        build_executor(tools_config(search={"corpus": corpus}, retriever={"url": "http://127.0.0.1:9/retrieve"}))


# -- ARPO's cache -----------------------------------------------------------------------------------------------------


def with_cache(tmp_path: Path, main: Callable[[Any], Awaitable[Any]], **cache: object) -> Any:
    config = tools_config(search={"corpus": write(tmp_path / "c.jsonl", ROWS)}, cache=cache)

    async def run() -> Any:
        async with build_executor(config) as executor:
            return await main(executor)

    return run_virtual(run())


def test_what_arpos_cache_knows_is_not_searched_for(tmp_path: Path) -> None:
    known = {"search query: who built it?": "Page 1: Ulrich.", "a minster": "Page 1: cached"}
    (tmp_path / "search_cache.json").write_text(json.dumps(known))

    async def main(executor: Any) -> list[tuple[str, str]]:
        queries = ['"a" minster ', "search query: who built it?", "minster"]
        results = [await executor.call(ToolCall(name="search", arguments={"query": q})) for q in queries]
        return [(result.text, result.outcome) for result in results]

    assert with_cache(tmp_path, main, search_cache=str(tmp_path / "search_cache.json")) == [
        ("Page 1: cached", "cached"),
        ("Page 1: Ulrich.", "cached"),
        ("Page 1: Ulm has the tallest minster.", "executed"),
    ]


def test_a_cache_that_is_none_is_one_line_at_the_start(tmp_path: Path) -> None:
    torn = tmp_path / "torn.json"
    torn.write_text('{"a": 3}')
    for cache, reason in (
        ({"search_cache": str(torn)}, r"search cache .*torn.json: Expected `str`, got `int`"),
        ({"search_cache": str(tmp_path / "no.json")}, r"search cache .*no.json: No such file"),
        ({"file": str(tmp_path)}, "cache .*: unable to open"),
    ):
        with pytest.raises(ConfigError, match=rf"{reason}.* - at \$.tools.cache.{next(iter(cache))}$"):
            build_executor(tools_config(search={"corpus": write(tmp_path / "c.jsonl", ROWS)}, cache=cache))
    with pytest.raises(ConfigError, match="there is no tool called search"):
        build_executor(tools_config(cache={"search_cache": str(torn)}))


def test_another_corpus_does_not_answer_from_the_cache_of_the_first(tmp_path: Path) -> None:
    file = str(tmp_path / "calls.db")

    def answer(rows: Sequence[object]) -> ToolResult:
        config = tools_config(search={"corpus": write(tmp_path / "c.jsonl", rows)}, cache={"file": file})

        async def main() -> ToolResult:
            async with build_executor(config) as executor:
                return await executor.call(ToolCall(name="search", arguments={"query": "minster"}))

        return asyncio.run(main())

    assert answer(ROWS).outcome == "executed"
    assert answer(ROWS).outcome == "cached"
    assert answer([{"text": "another minster"}]).text == "Page 1: another minster"

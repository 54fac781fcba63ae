"""BM25 over a small corpus, and the configuration that leads to it."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine import config as configuration
from engine.clock import run_virtual
from engine.errors import ConfigError
from engine.types import ToolCall
from tools.config import ToolsConfig, build_executor
from tools.passages import NO_RESULTS, Passage, ToolLimits, search_tool
from tools.search import Corpus

ROWS = [
    {"text": "Ulm has the tallest minster.", "title": "Ulm", "id": 1, "url": "ignored"},
    {"text": "Bonn lies on the Rhine.", "title": "Bonn"},
    {"text": "Cologne lies on the Rhine.", "title": "Cologne"},
    {"text": "The Rhine\n is a   river."},
]


def write(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.load(write(tmp_path / "corpus.jsonl", *ROWS))


def test_the_best_passage_comes_first_and_its_snippet_is_one_line(corpus: Corpus) -> None:
    assert (
        corpus.answer("which town has the MINSTER?", top_k=1, snippet_chars=99)
        == "Page 1: Ulm has the tallest minster."
    )
    assert corpus.answer("river", top_k=9, snippet_chars=99) == "Page 1: The Rhine is a river."
    assert corpus.answer("minster", top_k=1, snippet_chars=7) == "Page 1: Ulm has"


def test_titles_are_searched_and_not_shown(corpus: Corpus) -> None:
    pages = [Passage(text="a town", title="Ulm"), Passage(text="a town on the Ulm", title="x")]
    assert Corpus(pages).answer("ulm", top_k=2, snippet_chars=99) == "Page 1: a town\nPage 2: a town on the Ulm"


def test_equal_scores_keep_the_order_of_the_corpus_at_any_cut(corpus: Corpus) -> None:
    pages = Corpus([Passage(text="same same x" if i % 3 else "same y z", id=i) for i in range(300)])
    expected = [i for i in range(300) if i % 3] + [i for i in range(300) if not i % 3]
    for top_k in (1, 2, 7, 200, 201, 300, 999):
        assert [hit.id for hit in pages.search("same", top_k=top_k)] == expected[:top_k]


@pytest.mark.parametrize("query", ["", "?!", "Hamburg", "\u00fc"])
def test_a_query_without_a_hit_says_so(corpus: Corpus, query: str) -> None:
    assert corpus.answer(query, top_k=3, snippet_chars=99) == NO_RESULTS


def test_only_passages_that_share_a_word_are_hits(corpus: Corpus) -> None:
    assert [hit.id for hit in corpus.search("tallest", top_k=4)] == [1]


def test_broken_rows_are_left_out_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "c.jsonl", ROWS[0], "{torn", "", {"title": "no text"}, {"text": ""}, {"text": 3}, ROWS[1])
    with open(path, "ab") as file:
        file.write(b'{"text": "\xff"}\n')
    corpus = Corpus.load(path)
    assert len(corpus.passages) == 2
    assert corpus.broken_rows == (2, 4, 5, 6, 8)
    # The library's own debug lines are none of ours, and are not heard.
    assert caplog.messages == [f"corpus {path}: 5 broken rows left out (lines 2, 4, 5, 6, 8)"]


def tools_config(**sections: object) -> ToolsConfig:
    return configuration.decode(sections, ToolsConfig, source="test")


def test_a_corpus_that_cannot_be_used_is_one_line_at_the_start(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", "", "{}")
    for path, reason in ((str(tmp_path / "no"), "No such file or directory"), (empty, "no usable passage")):
        with pytest.raises(ConfigError) as error:
            build_executor(tools_config(search={"corpus": path}))
        message = str(error.value)
        assert path in message
        assert reason in message
        assert message.endswith("at $.tools.search.corpus")
        assert "\n" not in message


def test_build_executor_makes_the_tools_that_have_a_section(tmp_path: Path) -> None:
    assert build_executor(tools_config()).specs == ()
    path = write(tmp_path / "corpus.jsonl", *ROWS)
    executor = build_executor(
        tools_config(search={"corpus": path, "top_k": 1}, python={}, reward={"kind": "exact"}, max_result_chars=9)
    )
    assert [spec.name for spec in executor.specs] == ["search", "python"]

    async def main() -> list[str]:
        async with executor:
            found = await executor.call(ToolCall(name="search", arguments={"query": "minster"}))
            scored = await executor.call(ToolCall(name="reward", arguments={"text": "", "ground_truth": "5"}))
        return [found.text, scored.text]

    found, scored = run_virtual(main())
    assert found == "Page 1: U\n[cut: 27 of 36 characters left out]"
    assert json.loads(scored)["score"] == -1.0


def test_wrong_sections_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"unknown field `corpse` - at `\$.search`"):
        tools_config(search={"corpse": "c"})
    with pytest.raises(ConfigError, match=r"\$.reward.kind"):
        tools_config(reward={"kind": "f1"})


def test_a_large_corpus_is_searched_outside_the_loop(corpus: Corpus, tmp_path: Path) -> None:
    large = Corpus([*corpus.passages, *(Passage(text="w") for _ in range(100_001))])
    for pages in (corpus, large):
        found = asyncio.run(search_tool(pages, ToolLimits(top_k=1)).call({"query": "minster"}))
        assert found == "Page 1: Ulm has the tallest minster."


def test_importing_the_tools_loads_nothing_heavy() -> None:
    code = "import sys, tools, tools.config, tools.toolworld; tools.arpo_reward; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"asyncio_throttle", "bm25s", "pyarrow", "torch", "aiohttp", "tokenizers"}
    assert heavy & set(process.stdout.split()) == set()

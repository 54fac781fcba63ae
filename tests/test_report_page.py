"""The page of a report: whole, self-contained, harmless, and there for every run; and the tree drawn in it."""

from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.config import Config, TinyModel
from actors.report.charts import Bar, Bars, Level, Line, Lines
from actors.report.dendrogram import Dendrogram, dendrogram
from actors.report.fold import read_record
from actors.report.page import MAX_TOKENS, TAIL_TOKENS, shown, split
from actors.report.pieces import pieces_of
from actors.report.plots import draw
from actors.report.record import GrownTree
from actors.report.report import write_report
from actors.report.tree_choice import choose
from actors.report.tree_layout import lay_out
from actors.report.tree_view import Block, Leaf, Part, Token, TreeView, level_of
from actors.run_dir import RunDir, Summary
from engine.dataset import DataConfig
from engine.events import (
    AnyEvent,
    ControlEvaluated,
    Evaluated,
    GeneratorsMeasured,
    GroupFinished,
    GroupRefused,
    PathEnded,
    PathStarted,
    PhaseStarted,
    PromptAdmitted,
    Rewarded,
    RunFinished,
    RunStarted,
    SupervisedStep,
    TokensSampled,
)
from engine.journal import Journal
from engine.types import Int32
from learner.algorithms.advantage import estimate
from learner.config import ArpoSoft
from tests.report_runs import Story, report, step, text_of
from tools.toolworld import ToolworldConfig

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
HOSTILE = "</pre></i><script>alert(1)</script><img src=x onerror=alert(2)>"
K = 3


def grown(
    name: str, *, result: str = "[found]", scores: tuple[float, float, float] = (1.0, 0.0, 1.0)
) -> list[AnyEvent]:
    """`ask` [found] `see` ┬ `right`, path 0, and ┴ `wrong`, path 2; `alone`, path 1."""
    length = len("Q:ask") + len(result) + len("see")
    look = {"entropy_low": 0.75, "entropy_high": 0.75, "baseline": 0.25}
    story = Story(name).start(0).start(1).write(0, "ask").call(0, "search", text=result, duration_s=0.25)
    story.write(0, "see", entropy=0.75).consider(0, observation=1, length=length, is_wanted=True, **look)
    story.fork(0, 2, length=length, num_inherited_calls=1).write(0, "right").write(2, "wrong", entropy=2.5)
    story.write(1, "alone")
    for path, score in enumerate(scores):
        story.end(path, score)
    return story.finish()


def whole_run(*, result: str = "[found]") -> list[AnyEvent]:
    """A run with everything: a cold start, evaluations, four steps, refusals, a control."""
    events: list[AnyEvent] = [RunStarted(run="r", config_digest=""), PhaseStarted(name="cold start", t=1.0)]
    events += [SupervisedStep(report=report(number, loss=0.5 / number), t=2.0) for number in (1, 2, 3)]
    events += [Evaluated(step=0, version=0, metrics={"success": 0.25, "questions": 40.0}, t=3.0)]
    events += [PhaseStarted(name="reinforcement learning", t=4.0)]
    for number in (1, 2, 3, 4):
        t, falling = 4.0 + number, 0.5 / number
        name, dull = f"e0-r{number}", f"e1-r{number}"
        admitted, *story = (msgspec.structs.replace(event, t=t - 0.5) for event in grown(name, result=result))
        events += [msgspec.structs.replace(admitted, version=number - 1), *story]
        events += grown(dull, scores=(1.0, 1.0, 1.0))
        events += [GroupRefused(prompt_id=dull, reason="no learning signal")]
        events += step(number, name, t=t, wait_s=0.25, step_s=0.25, publish_s=0.125, loss=falling, others=falling)
        events += [GeneratorsMeasured(busy_s=number / 2, num_sampled_tokens=100 * number, t=t)]
    events += [Evaluated(step=4, version=4, metrics={"success": 0.75, "questions": 40.0}, t=9.0)]
    events += [PhaseStarted(name="control", t=9.0), SupervisedStep(report=report(1), t=9.5)]
    return [*events, ControlEvaluated(num_steps=1, metrics={"success": 0.5}, t=10.0), RunFinished(t=10.0)]


def run_dir(path: Path, events: Iterable[AnyEvent], *, config: Config | None = None) -> RunDir:
    run = RunDir(path / "demo")
    with Journal(run.journal) as journal:
        for event in events:
            journal.append(event)
    run.write_config(config or Config(model=TinyModel(), data=DataConfig(path="world:train")))
    return run


class Reader(HTMLParser):
    """Elements that are open, what they hold, and whether every one is closed by its own end tag."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def text(self) -> str:
        return " ".join(t for tag, texts in self.texts.items() if tag not in ("script", "style") for t in texts)


def page_of(run: RunDir, *, text: Callable[[Int32], str] = text_of) -> str:
    return write_report(run, text=text).read_text(encoding="utf-8")


# -- the page -----------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = page_of(run_dir(tmp_path, whole_run()))
    reader = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    assert "http:" not in page
    assert "https:" not in page
    assert not {"link", "img", "iframe", "object", "base"} & set(reader.tags)
    links = [value for name, value in reader.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all(link.startswith("#") for link in links)
    names = [value for name, value in reader.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {link[1:] for link in links} <= set(names)


def test_what_a_run_on_toolworld_taught_is_told(tmp_path: Path) -> None:
    told = "Page 1: the boss of Kela is Sovi . the mother of Kela is Tuna ."

    def text(token_ids: Int32) -> str:
        response = text_of(token_ids).replace("ask", "<search> Bado Rimu : mother of Kela </search> ")
        return response.replace("[found]", f"<result>\n{told}\n</result>").replace("see", " <think> Sovi </think>")

    config = Config(model=TinyModel(), data=DataConfig(path="world:train"), world=ToolworldConfig(sloppy=0.25))
    page = Reader(page_of(run_dir(tmp_path, whole_run(), config=config), text=text)).text()
    assert "behind 25 % of its searches" in page
    assert "copied it in 100 % of 16 cases early in RL, and in 100 % of 16 late" in page


def test_the_page_tells_what_the_journal_says(tmp_path: Path) -> None:
    run = run_dir(tmp_path, whole_run())
    run.write_summary(Summary(status="finished", seed=0, steps=4, wall_s=12.5))
    told = Reader(page_of(run)).text()
    for wanted in (
        "finished · 4 steps",
        "25.0 % → 75.0 %",
        "12 s",
        "came to 50.0 %; the trained policy is 25 points higher",
        "Before the first step, greedy success on 40 questions was 25.0 %",
        "8 branches were granted",
        "e0-r3, begun with the weights of step 2 and trained in step 3",
        "who?",
        "advantage +0.58",
        "Generators were busy",
        '"kind": "arpo"',
    ):
        assert wanted in told, wanted


def test_what_tools_say_cannot_become_markup(tmp_path: Path) -> None:
    config = Config(model=TinyModel(), data=DataConfig(path=HOSTILE))
    page = page_of(run_dir(tmp_path, whole_run(result=HOSTILE), config=config))
    reader = Reader(page)
    assert reader.tags.count("script") == 1
    assert "img" not in reader.tags
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert HOSTILE in reader.texts["span"]


@pytest.mark.parametrize("length", [0, 1, 2, 5, 12, 20, 40, 60, 90, 120])
def test_a_run_that_stopped_anywhere_has_a_page(tmp_path: Path, length: int) -> None:
    told = Reader(page_of(run_dir(tmp_path, whole_run()[:length]))).text()
    assert "unfinished" in told
    assert "One tree" in told
    assert "nan" not in told.lower().split()


def test_a_run_without_forks_tools_or_evaluations_has_a_page(tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    for number in (1, 2, 3):
        kept = (PromptAdmitted, PathStarted, TokensSampled, Rewarded, PathEnded, GroupFinished)
        events += [e for e in grown(f"r{number}") if isinstance(e, kept) and getattr(e, "path", 0) != 2]
        events += step(number, f"r{number}", t=number, step_s=0.0)[:2]
    told = Reader(page_of(run_dir(tmp_path, events))).text()
    for wanted in (
        "no evaluation",
        "No supervised steps",
        "No token was sampled behind",
        "No step has a tool call",
        "No fork",
    ):
        assert wanted in told, wanted


def test_a_report_replaces_the_one_before_and_leaves_nothing_else(tmp_path: Path) -> None:
    run = run_dir(tmp_path, whole_run())
    first, second = page_of(run), page_of(run)
    assert first == second
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "journal", "report.html"]


# -- plots --------------------------------------------------------------------------------------------------------


def test_plots_of_one_page_share_no_id_and_keep_their_text() -> None:
    gap = [0.1, float("nan"), 0.5]
    band = Line(x=[1, 2, 3], y=gap, low=[0.0, 0.1, 0.2], high=[0.2, 0.3, 0.6], label="a < b")
    points = Line(x=[1, 3], y=[0.2, 0.4], low=[0.1, 0.3], high=[0.3, 0.5], form="markers")
    chart = Lines(lines=[band, points], levels=[Level(y=0.3, label="$level")], x_label="x", y_label="y", is_share=True)
    rows = [Bar(label="one", amounts=(3, 2, 1), note="3"), Bar(label="two", amounts=(0.0,))]
    charts = [chart, chart, Bars(rows=rows, form="bars", x_label="n"), Bars(rows=rows[:1], form="points", x_label="n")]
    page = "".join(draw(c, name=f"plot{i}", alt=f'it "says" {i}') for i, c in enumerate(charts))
    reader = Reader(page)
    names = [value for name, value in reader.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {"a < b", "$level", "one", "two", "x"} <= set(reader.texts["text"])
    assert [value for name, value in reader.attributes if name == "aria-label"] == [f'it "says" {i}' for i in range(4)]


# -- the tree -----------------------------------------------------------------------------------------------------


def laid_out(events: list[AnyEvent]) -> tuple[GrownTree, TreeView]:
    (tree,) = read_record(events).trees
    return tree, lay_out(tree, text=text_of, probe_tokens=K, sample=estimate(tree.group, ArpoSoft()))


def written(block: Block) -> str:
    return "|".join("".join(token.text for token in part.tokens) for part in block.parts)


def test_a_tree_is_laid_out_in_blocks_between_its_forks() -> None:
    _, view = laid_out(grown("p"))
    first, alone = view.roots
    assert [written(block) for block in (first, *first.children, alone)] == [
        "ask|[found]|see",
        "right",
        "wrong",
        "alone",
    ]
    assert [(b.path, b.is_branch) for b in (first, *first.children, alone)] == [
        (0, False),
        (0, False),
        (2, True),
        (1, False),
    ]
    assert (first.paths, first.depth, alone.depth) == ([0, 2], 2, 1)
    ask, found, see = first.parts
    assert (found.kind, found.tool, found.start) == ("observed", "search", 3)
    assert [token.is_probe for token in (*ask.tokens, *see.tokens)] == [False] * 3 + [True] * 3
    (look,) = see.looks
    assert (look.entropy, look.baseline, look.is_wanted, look.is_granted) == (0.75, 0.25, True, True)
    leaves = [leaf for root in view.roots for leaf in root.all_leaves()]
    assert [(leaf.path, leaf.reward, round(leaf.advantage or 0, 3)) for leaf in leaves] == [
        (0, 1.0, 0.577),
        (2, 1.0, 0.577),
        (1, 0.0, -1.155),
    ]


def test_a_path_that_ends_where_another_branches_is_not_lost() -> None:
    events = grown("p")
    events = [
        e for e in events if not (isinstance(e, TokensSampled) and e.path == 0 and text_of(e.token_ids) == "right")
    ]
    _, view = laid_out(events)
    assert sorted(leaf.path for root in view.roots for leaf in root.all_leaves()) == [0, 1, 2]


def test_without_a_learning_signal_there_is_no_advantage() -> None:
    _, view = laid_out(grown("p", scores=(1.0, 1.0, 1.0)))
    assert {leaf.advantage for root in view.roots for leaf in root.all_leaves()} == {None}


def test_the_picture_has_a_row_for_each_path_and_hangs_branches_from_their_forks() -> None:
    _, view = laid_out(grown("p"))
    picture: Dendrogram = dendrogram(view)
    assert [row.leaf.path for row in picture.rows] == [0, 2, 1]
    length = len("ask[found]seeright")
    (drop,) = picture.drops
    assert (drop.left * length, drop.top, drop.bottom) == (len("ask[found]see"), 0, 1)
    assert [(run.kind, round(run.left * length), round(run.width * length)) for run in picture.rows[0].runs] == [
        ("h0", 0, 3),
        ("o", 3, 7),
        ("h3", 10, 3),
        ("h0", 13, 5),
    ]
    assert [run.kind for run in picture.rows[1].runs] == ["h5"]


def test_levels_of_entropy_begin_at_their_bounds() -> None:
    assert [level_of(h) for h in (0.0, 0.049, 0.05, 0.5, 1.99, 2.0, 9.0)] == [0, 0, 1, 3, 4, 5, 5]


def test_the_middle_of_a_long_part_is_left_out() -> None:
    tokens = [Token(text=str(i)) for i in range(MAX_TOKENS + 1)]
    found = shown(Part(kind="sampled", start=0, tokens=tokens))
    assert found.index(None) == MAX_TOKENS - TAIL_TOKENS
    assert found[-TAIL_TOKENS:] == tokens[-TAIL_TOKENS:]
    assert shown(Part(kind="sampled", start=0, tokens=tokens[1:])) == tokens[1:]


def test_paths_with_mixed_ends_are_shown_first_and_many_are_folded() -> None:
    def root(path: int, *is_correct: bool) -> Block:
        shared = {"status": "completed", "reward": 0.0, "reason": "", "advantage": None, "num_tool_calls": 0}
        leaves = [Leaf(path=path, is_correct=is_right, **shared) for is_right in is_correct]  # type: ignore[arg-type]
        return Block(path=path, paths=[path], is_branch=False, leaves=leaves)

    roots = [root(0, True), root(1, False), root(2, True, False), root(3, True, True), root(4, False, True)]
    view = TreeView(
        prompt_id="p",
        question="",
        ground_truth="",
        prompt_text="",
        trained_in=None,
        version=0,
        num_forks=0,
        length=1,
        roots=roots,
    )
    first, others = split(view)
    assert [[block.path for block in part] for part in (first, others)] == [[2, 4, 0, 1], [3]]


def test_the_chosen_tree_has_forks_mixed_rewards_and_comes_from_the_middle() -> None:
    def trees(*scores: tuple[float, float, float]) -> list[GrownTree]:
        events: list[AnyEvent] = []
        for number, three in enumerate(scores):
            story = grown(f"p{number}", scores=three)
            assert isinstance(story[0], PromptAdmitted)
            events += [msgspec.structs.replace(story[0], version=number), *story[1:]]
        return read_record(events).trees

    same, mixed = (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)
    found = trees(same, mixed, same, same, (1.0, 0.0, 1.0), mixed, same, mixed, mixed)
    chosen = choose(found, num_steps=9)
    assert chosen is found[5]
    assert choose(trees(same, same), num_steps=2) is not None
    assert choose([], num_steps=0) is None


@given(st.text(max_size=40), st.integers(0, 12))
def test_pieces_of_bytes_are_the_text_behind_the_start(text: str, start: int) -> None:
    encoded = text.encode("utf-8", errors="replace")
    token_ids = np.frombuffer(encoded, np.uint8).astype(np.int32)

    def decode(some: Int32) -> str:
        return bytes(some.tolist()).decode("utf-8", errors="replace")

    cuts = [i for i in range(len(encoded) + 1) if i == len(encoded) or encoded[i] & 0xC0 != 0x80]
    start = cuts[start % len(cuts)]
    pieces = pieces_of(token_ids, decode, start=start)
    assert len(pieces) == token_ids.size - start
    assert "".join(pieces) == decode(token_ids[start:])


@given(st.lists(st.sampled_from(["a", "bc", "\n", "d"]), max_size=30))
def test_pieces_of_words_carry_the_spaces_between_them(words: list[str]) -> None:
    def decode(some: Int32) -> str:
        chosen = [words[i] for i in some.tolist()]
        spaces = ["" if "\n" in pair else " " for pair in pairwise(chosen)]
        return "".join(a + b for a, b in zip(["", *spaces], chosen, strict=True)) if chosen else ""

    token_ids = np.arange(len(words), dtype=np.int32)
    assert "".join(pieces_of(token_ids, decode)) == decode(token_ids)

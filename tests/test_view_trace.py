"""`arpo trace`: a page that needs nothing but itself and can run nothing of what it shows; and a Perfetto trace."""

import base64
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from actors.cli import main, parse
from actors.config import Config, TinyModel
from actors.view.activity import MAX_BINS
from actors.view.page import SCRIPTS, STYLES, live_page, policy
from actors.view.perfetto import trace_events
from actors.view.run_fold import MAX_TREES
from actors.view.run_view import RunView
from actors.view.trace import MAX_TREE_BYTES, choose, write_run_perfetto, write_trace
from engine.dataset import DataConfig
from engine.events import AnyEvent, BatchTaken, TokensSampled, ToolFinished
from engine.inference.sglang_config import SglangConfig
from tests.view_runs import HOSTILE, make_run, texts, whole_run

EVENTS = whole_run(num_steps=4, num_groups=4)
ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "actors" / "view" / "web"


def data_of(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def slices(events: list[AnyEvent]) -> list[dict[str, Any]]:
    return [event for event in trace_events(events, name="r") if event["ph"] == "X"]


def test_the_page_holds_the_run_and_says_of_which_trees_it_has_the_texts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", EVENTS)
    page = write_trace(run, max_trees=5).read_text(encoding="utf-8")
    data = data_of(page)
    state = data.pop("state")
    view = RunView(run, texts=texts())
    view.refresh_all()
    assert [row["id"] for row in state["trees"]] == [row["id"] for row in view.changes()["trees"]]
    assert len(state["steps"]) == 4
    assert set(data) == {f"tree-{name}" for name in state["documents"]}
    assert len(data) == 5


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    page = write_trace(make_run(tmp_path / "demo", EVENTS)).read_text(encoding="utf-8")
    outside = re.findall(r"(?:src|href|action)=\"(?!#|data:,)[^\"]*\"", page)
    assert outside == []
    assert not re.search(r"@import|url\(", page)
    assert set(re.findall(r"https?://[\w./]+", page)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("connects", [True, False])
def test_the_policy_allows_the_scripts_and_styles_of_the_page_and_no_others(connects: bool) -> None:
    page, rules = live_page(title="demo"), policy(connects=connects)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    for text, kind in ((script, "script-src"), (style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in rules
    assert "default-src 'none'" in rules
    assert ("connect-src 'self'" in rules) is connects


def test_what_a_model_wrote_is_data_and_never_code(tmp_path: Path) -> None:
    page = write_trace(make_run(tmp_path / "demo", EVENTS), max_trees=99).read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert page.count("</script>") == page.count("<script")
    assert any(HOSTILE in tree["question"] for name, tree in data_of(page).items() if name.startswith("tree-"))
    scripts = "".join((WEB / name).read_text() for name in SCRIPTS)
    for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert danger not in scripts


def test_every_file_of_the_page_is_in_it() -> None:
    assert {*SCRIPTS, *STYLES, "page.html"} == {path.name for path in WEB.iterdir()}
    long = [path.name for path in WEB.iterdir() if len(path.read_text().splitlines()) > 300]
    assert long == []


def test_secrets_of_the_configuration_are_in_neither_page_nor_view(tmp_path: Path) -> None:
    generator = SglangConfig(api_key="xyzzy-plugh")
    config = Config(model=TinyModel(), data=DataConfig(path="world:train"), generator=generator)
    run = make_run(tmp_path / "demo", EVENTS[:50], config=config)
    raw = json.loads((run.path / "config.json").read_text())
    assert raw["generator"]["api_key"] == "(hidden)"
    raw["generator"]["api_key"] = "xyzzy-plugh"  # by hand: nothing writes it so
    for change in ({}, {"not_a_key": 1}):  # read as a configuration, and as the file has it
        (run.path / "config.json").write_text(json.dumps(raw | change))
        page = write_trace(run).read_text(encoding="utf-8")
        assert "(hidden)" in page
        assert "xyzzy-plugh" not in page


def test_trees_are_chosen_from_every_step_those_with_different_rewards_first(tmp_path: Path) -> None:
    view = RunView(make_run(tmp_path / "demo", EVENTS), texts=texts())
    view.refresh_all()
    rows = view.fold.rows
    chosen = choose(rows, limit=8)
    assert len({row.id for row in chosen}) == 8
    steps = [row.step for row in chosen if row.step is not None]
    assert set(steps) == {1, 2, 3, 4}
    first = {step: next(row for row in chosen if row.step == step) for step in set(steps)}
    for step, row in first.items():
        mixed = [one for one in rows if one.step == step and one.score_min != one.score_max]
        assert row in mixed or not mixed


# -- Perfetto -----------------------------------------------------------------------------------------------------


def test_slices_of_one_thread_never_overlap() -> None:
    threads: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in slices(EVENTS):
        threads.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert len({pid for pid, _ in threads}) == 4
    for spans in threads.values():
        assert all(one[1] <= other[0] for one, other in pairwise(sorted(spans)))


def test_every_call_and_token_is_in_the_trace_once() -> None:
    found = slices(EVENTS)
    calls = [event for event in found if event["pid"] == 4]
    assert len(calls) == sum(isinstance(event, ToolFinished) for event in EVENTS)
    sampled = sum(event.token_ids.size for event in EVENTS if isinstance(event, TokensSampled))
    assert sum(event["args"]["tokens"] for event in found if event["pid"] == 3) == sampled


def test_an_arrow_leads_from_the_last_group_of_a_batch_to_its_step() -> None:
    trace = list(trace_events(EVENTS, name="r"))
    waited = [event for event in EVENTS if isinstance(event, BatchTaken) and event.wait_s > 0]
    assert waited
    begins = {event["id"]: event for event in trace if event["ph"] == "s"}
    ends = {event["id"]: event for event in trace if event["ph"] == "f"}
    assert set(begins) == set(ends) == {event.step for event in waited}
    for event in waited:
        start, end = begins[event.step], ends[event.step]
        around = [s for s in slices(EVENTS) if (s["pid"], s["tid"]) == (start["pid"], start["tid"])]
        (group,) = [s for s in around if s["ts"] <= start["ts"] < s["ts"] + s["dur"]]
        assert group["name"] in event.prompt_ids
        assert end["ts"] == round(event.t * 1e6)


def test_the_file_is_json_that_a_reader_of_traces_takes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", EVENTS)
    count = write_run_perfetto(run, tmp_path / "trace.json")
    read = json.loads((tmp_path / "trace.json").read_text())
    assert len(read["traceEvents"]) == count
    assert {event["ph"] for event in read["traceEvents"]} == {"M", "C", "X", "s", "f"}


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_or_the_trace_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "demo", EVENTS[:200])
    assert main(["trace", str(run.path)]) == 0
    assert capsys.readouterr().out == f"{run.path / 'trace.html'}\n"
    target = tmp_path / "t.json"
    assert main(["trace", str(run.path), "--perfetto", str(target)]) == 0
    assert json.loads(target.read_text())["traceEvents"]


def test_a_folder_without_a_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["trace", str(tmp_path / "none")], ["trace", str(tmp_path)], ["watch", str(tmp_path / "none")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    run = make_run(tmp_path / "demo", EVENTS[:5])
    assert main(["trace", str(run.path), "--out", str(tmp_path / "no" / "page.html")]) == 2


def test_the_commands_of_the_document_are_taken_and_its_figures_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "seeing.md").read_text()
    lines = re.findall(r"^    arpo ([^#\n]+)", text, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["watch", "trace", "trace", "watch"]
    for line in lines:
        assert parse(line.split()).run == "runs/demo"
    assert f"the last {MAX_TREES:,} trees" in text
    assert f"{MAX_BINS:,} bins" in text
    assert f"texts of {parse(['trace', 'r']).trees} trees" in text
    assert f"{MAX_TREE_BYTES // 2**20} MiB at most" in text

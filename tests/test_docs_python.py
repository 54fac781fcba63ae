"""Programs on the pages run as they stand, one behind another, where `configs/demo.toml` is something small."""

import contextlib
import io
from pathlib import Path

import pytest

from tests.documents import PAGES, blocks

SMALL = """
[world]
num_sft = 0
num_drills = 0
num_train = 4
num_valid = 0
num_test = 4
questions_per_world = 4
[model]
kind = "tiny"
tokenizer = "words"
hidden_size = 32
num_layers = 1
num_heads = 2
num_kv_heads = 2
head_dim = 16
intermediate_size = 64
max_positions = 512
[data]
path = "world:train"
[tools.search]
corpus = "world:corpus"
[tools.reward]
kind = "exact"
[rollout]
size = 2
[rollout.branching]
kind = "chain"
[rollout.sampling]
max_response_tokens = 16
"""
HEAVY = "Session(config"
"""Starts processes."""


def run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a page's programs in one namespace; returns what they print."""
    (folder / "configs").mkdir()
    (folder / "configs" / "demo.toml").write_text(SMALL)
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    names: dict[str, object] = {"__name__": "page"}
    with contextlib.redirect_stdout(printed):
        for number, block in enumerate(blocks(PAGES[page], "python")):
            exec(compile(block, f"{page}, program {number}", "exec", dont_inherit=True), names)
    return printed.getvalue()


def pages(*, heavy: bool) -> list[str]:
    found = {page: "".join(blocks(text, "python")) for page, text in PAGES.items()}
    return [page for page, programs in found.items() if programs and (HEAVY in programs) == heavy]


@pytest.mark.parametrize("page", pages(heavy=False))
def test_programs_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, tmp_path, monkeypatch)


@pytest.mark.real
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", pages(heavy=True))
def test_programs_that_start_a_session_run_and_print_what_came_of_it(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(page, tmp_path, monkeypatch).strip()

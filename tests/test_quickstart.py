"""docs/quickstart.md leads where it says: its own commands, from the first file to a run that called the tool."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.ports import free_port
from tests.documents import PAGES, ROOT, blocks

TEXT = PAGES["docs/quickstart.md"]
STOCK, REAL = blocks(TEXT, "toml")
EXAMPLE = ROOT / "examples" / "stock.py"


@contextmanager
def serving(port: int) -> Iterator[None]:
    """The example's tool, for the length of the block."""
    process = subprocess.Popen([sys.executable, EXAMPLE, "serve", str(port)])
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()


def arpo(folder: Path, *words: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "actors.cli", *words]
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert found.returncode == 0, found.stderr
    return found


def test_its_example_writes_the_lines_that_it_shows(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLE, "write", "stock"], cwd=tmp_path, check=True, timeout=60)
    shown = {"question": "How many pipes are left in aisle 20 ?", "answer": "few"}
    assert f"`{json.dumps(shown)}`" in TEXT
    lines = (tmp_path / "stock" / "train.jsonl").read_text().splitlines()
    assert json.dumps(shown) in lines
    traces = [json.loads(line) for line in (tmp_path / "stock" / "traces.jsonl").read_text().splitlines()]
    said = [trace["segments"][2]["text"].split()[1] for trace in traces]
    found = [trace["segments"][1]["text"].split()[1] for trace in traces]
    where_few = [word for word, there in zip(said, found, strict=True) if there != "many"]
    assert 0.55 < where_few.count("many") / len(where_few) < 0.65


@pytest.mark.real
@pytest.mark.timeout(900)
def test_its_run_calls_the_tool_and_leaves_what_the_page_names(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLE, "write", "stock"], cwd=tmp_path, check=True, timeout=60)
    port = free_port()
    elsewhere = STOCK.replace("127.0.0.1:8700", f"127.0.0.1:{port}")
    assert elsewhere != STOCK
    (tmp_path / "stock.toml").write_text(elsewhere)
    with serving(port):
        arpo(tmp_path, "doctor", "stock.toml", timeout_s=120)
        arpo(tmp_path, "train", "stock.toml", timeout_s=800)
    run = tmp_path / "runs" / "stock"
    for name in ("report.html", "summary.json", "metrics.jsonl", "hf", "best", "journal", "checkpoints"):
        assert (run / name).exists(), name
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["num_tool_calls_executed"] < summary["num_tool_calls_requested"], "pure calls run once"
    assert summary["success_after"] > summary["success_before"] > 0.2

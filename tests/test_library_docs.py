"""The Python of docs/library.md and of the README runs as it stands, on a small policy in place of the demo's."""

import re
import shutil
from pathlib import Path

import pytest

from actors.policy import Policy
from actors.session import Session
from tests.session_world import small_config

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = (ROOT / "docs" / "library.md").read_text()
SNIPPETS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in (ROOT / "docs" / "library.md", ROOT / "README.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.real
@pytest.mark.timeout(180)
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_config(tmp_path / "world")
    (tmp_path / "configs").mkdir()
    shutil.copy(tmp_path / "world" / "small.toml", tmp_path / "configs" / "demo.toml")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out, "it prints what it comes to"


def test_every_call_of_a_session_and_of_the_handle_is_described() -> None:
    for kind, opening in ((Session, "| call |"), (Policy, "| of the handle |")):
        table = LIBRARY.split(opening)[1].split("\n\n")[0]
        shown = {name for row in table.splitlines()[2:] for name in re.findall(r"`(?:await )?(?:policy)?\.?(\w+)", row)}
        public = {name for name in vars(kind) if not name.startswith("_")}
        assert public - shown <= {"folder", "length", "calls", "ended", "num_sampled", "close"}, kind
        assert [name for name in re.findall(r"policy\.(\w+)", table) if not hasattr(Policy, name)] == []


def test_every_example_is_named() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} <= set(re.findall(r"\w+\.py", LIBRARY))

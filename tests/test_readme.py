"""The README tells the truth about the files there are."""

import re
import tomllib
from pathlib import Path

import pytest

from actors.cli import main
from engine import config as configuration
from tools.config import ToolsConfig

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "engine",
    "engine/inference",
    "tools",
    "tools/sandbox",
    "learner",
    "actors",
    "actors/bench",
    "actors/gateway",
    "actors/report",
)


def listed() -> set[str]:
    """Every file of the tree under `## Files`, by its path."""
    text = (ROOT / "README.md").read_text().split("## Files")[1].split("\n## ")[0]
    found: set[str] = set()
    folder = ""
    for line in text.splitlines():
        if heading := re.match(r"    (\S+)/ ", line):
            folder = heading[1]
        elif file := re.match(r"      (\S+\.py)\s+\S", line):
            found.add(f"{folder}/{file[1]}")
    return found


def test_the_tree_names_every_module_and_no_other() -> None:
    modules = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    assert listed() == modules


def test_the_tools_it_shows_are_configured_as_it_says() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shown = {name: table for block in blocks for name, table in tomllib.loads(block).get("tools", {}).items()}
    tools = configuration.decode(shown, ToolsConfig, source="README.md")
    assert tools.web_search is not None
    assert (tools.mcp[0].name, tools.http[0].name) == ("time", "weather")


def test_the_commands_it_shows_exist() -> None:
    shown = set(re.findall(r"^    arpo (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert shown
    for command in shown:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0, command

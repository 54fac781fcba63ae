"""The README tells the truth about the files there are."""

import ast
import re
from pathlib import Path

import pytest

from actors.cli import main

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "tools", "learner", "actors")


def test_it_names_every_folder_and_no_other() -> None:
    text = (ROOT / "README.md").read_text().split("## Files")[1].split("\n## ")[0]
    named = set(re.findall(r"^    (\S+) ", text, re.MULTILINE))
    packages = {str(file.parent.relative_to(ROOT)) for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert named - {"configs", "docs", "examples", "tests"} == packages


def test_every_module_says_in_its_first_line_what_it_is() -> None:
    modules = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    silent = [str(file.relative_to(ROOT)) for file in modules if not ast.get_docstring(ast.parse(file.read_text()))]
    assert silent == []


def test_the_commands_it_shows_exist() -> None:
    shown = set(re.findall(r"^    arpo (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert shown
    for command in shown:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0, command

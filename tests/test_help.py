"""`--help` and the parser agree, and what help says of keys and defaults is true."""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.bench.control_config import ControlConfig
from actors.cli import command_parsers
from actors.commands import COMMANDS
from actors.config import Config
from tests.configuration_keys import is_key

ROOT = Path(__file__).resolve().parent.parent
PARSERS = command_parsers()


def test_every_command_of_the_parser_is_carried_out_and_no_other() -> None:
    assert set(PARSERS) == set(COMMANDS)


def test_every_command_is_in_the_readme_and_no_other() -> None:
    named = set(re.findall(r"^    arpo (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named == set(PARSERS)


@pytest.mark.parametrize("name", PARSERS)
def test_help_names_every_argument_and_says_what_it_is(name: str) -> None:
    text = PARSERS[name].format_help()
    for action in actions_of(name):
        assert action.help or action.choices, action.dest
        shown = action.option_strings or [str(action.metavar or action.dest)]
        if action.choices and not action.option_strings:
            shown = [str(choice) for choice in action.choices]
        assert [word for word in shown if word not in text] == []


@pytest.mark.parametrize("name", PARSERS)
def test_help_names_only_keys_that_there_are_and_true_defaults(name: str) -> None:
    for action in actions_of(name):
        said = action.help or ""
        words = re.findall(r"\b([a-z_]+(?:\.[a-z_0-9]+)+)(?=[= ,)]|$)", said)
        keys = [word for word in words if not word.endswith((".toml", ".md", ".json", ".html"))]
        kind = ControlConfig if name == "bench" else Config
        assert [key for key in keys if not is_key(key, of=kind)] == [], said
        for default in re.findall(r"\(default (\S+)\)", said):
            assert str(action.default) == default


def actions_of(name: str) -> list[argparse.Action]:
    return [action for action in PARSERS[name]._actions if action.dest != "help"]


@pytest.mark.real
def test_help_answers_in_less_than_half_a_second() -> None:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "actors.cli", "--help"], check=True, capture_output=True, timeout=30)
        return time.perf_counter() - started

    assert min(once() for _ in range(5)) < 0.5

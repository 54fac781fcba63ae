"""The documents say what the configuration takes, and leave nothing out."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from actors.cli import parse
from actors.config import Config
from actors.scoring import F1_SETS, MATH_SETS
from engine.config import decode
from engine.config_layers import overlaid
from learner.config import AdvantageConfig, CorrectionConfig, LossConfig, NormalisationConfig, RejectionConfig

ROOT = Path(__file__).resolve().parent.parent
ALGORITHMS = (ROOT / "docs" / "algorithms.md").read_text()
REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text()
COMMANDS = re.findall(r"^    arpo (.+)$", re.sub(r"\\\n +", "", REPRODUCE), re.MULTILINE)
SNIPPETS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_is_decoded_over_a_shipped_configuration(snippet: str) -> None:
    said = tomllib.loads(snippet)
    demo = tomllib.loads((ROOT / "configs" / "demo.toml").read_text())
    config = decode(overlaid(demo, said), Config, source="the snippet")
    found: Any = msgspec.json.decode(msgspec.json.encode(config))
    assert holds(found, said), "a snippet shows something: none of its keys is lost on the way"


def holds(found: Any, said: Any) -> bool:
    """Whether all that is said is there, keys of tables in arrays included."""
    if isinstance(said, dict):
        return isinstance(found, dict) and all(name in found and holds(found[name], said[name]) for name in said)
    if isinstance(said, list):
        return len(found) == len(said) and all(map(holds, found, said))
    return found == said


@pytest.mark.parametrize(
    "union", [AdvantageConfig, LossConfig, CorrectionConfig, RejectionConfig, NormalisationConfig], ids=str
)
def test_every_choice_of_an_algorithm_is_described(union: Any) -> None:
    tags = [kind.__struct_config__.tag for kind in get_args(union)]
    assert [tag for tag in tags if f"`{tag}`" not in ALGORITHMS] == []


def test_every_preset_is_described_and_no_other() -> None:
    table = ALGORITHMS.split("| file |")[1].split("\n\n")[0]
    described = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert described == {path.stem for path in (ROOT / "configs" / "algorithms").glob("*.toml")}


def test_the_command_lines_it_shows_are_taken() -> None:
    lines = re.findall(r"^    arpo train CONFIG (.+)$", ALGORITHMS, re.MULTILINE)
    assert lines
    for line in lines:
        Config.load(ROOT / "configs" / "demo.toml", *line.split())


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_reproduction_is_parsed_and_its_configuration_decoded(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = parse(shlex.split(line))
    if arguments.config is not None:
        config = Config.load(arguments.config, *arguments.overrides)
        assert config.run.name is not None or arguments.command in ("doctor", "eval")
    for path in getattr(arguments, "data", None) or getattr(arguments, "predictions", None) or ():
        assert path.endswith(".jsonl")


def test_the_reproduction_has_a_row_of_every_table_and_says_what_was_not_run() -> None:
    layers = {word for line in COMMANDS for word in line.split() if word.endswith(".toml")}
    recipes = {f"configs/recipes/{name}.toml" for name in ("reasoning", "deep_search")}
    assert recipes | {"models/qwen3_14b.toml", "evaluation/paper.toml", "evaluation/judge.toml"} <= layers
    assert [
        name for name in ("Table 1", "Table 2", "Table 3", "What was run here") if f"## {name}" not in REPRODUCE
    ] == []
    sets = {Path(word).stem for line in COMMANDS if "table1.json" in line for word in line.split() if "/eval/" in word}
    assert sets == MATH_SETS | F1_SETS | {"webwalker"}

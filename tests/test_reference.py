"""The configuration reference is what the types say, all of it, and nothing in it is undescribed."""

import re
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta, inspect

from actors.cli import main
from actors.config import Config
from actors.effective import effective
from actors.reference import anchor, reference
from engine.config import Section, decode
from engine.key_descriptions import descriptions
from tests.configuration_keys import is_key

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "configuration.md"
ROWS = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
"""Key, type, default, meaning."""


def test_the_document_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--reference"]) == 0
    assert capsys.readouterr().out == DOCUMENT.read_text(), "arpo config --reference > docs/configuration.md"


def test_every_key_has_a_type_a_default_and_a_meaning() -> None:
    assert len(ROWS) > 300
    assert [key for key, kind, _, meaning in ROWS if not kind.strip() or not meaning.strip()] == []
    assert [key for key, kind, default, _ in ROWS if not default.strip() and "section" not in kind] == []


def test_it_holds_every_key_that_there_is_and_no_other() -> None:
    text = DOCUMENT.read_text()
    assert [key for key, *_ in ROWS if not is_key(key.replace(".N", ".0"))] == []
    homes = re.findall(r"^##+ `([^`]+)`(?:: `(\w+)`)?$", text, re.MULTILINE)
    assert {kind for _, kind in homes if kind} == {kind.tag for kind in structs() if kind.tag}
    written = [key.rsplit(".", 1)[-1] for key, *_ in ROWS]
    # A Struct is described once, so each of its fields has one row.
    assert sorted(written) == sorted(field.name for struct in structs() for field in struct.fields)


def structs() -> list[inspect.StructType]:
    """Every section that a configuration may hold, once."""
    found: dict[type, inspect.StructType] = {}
    waiting: list[inspect.Type] = [inspect.type_info(Config)]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, inspect.StructType) and kind.cls not in found:
            found[kind.cls] = kind
            waiting += [field.type for field in kind.fields]
        waiting += [*getattr(kind, "types", ()), *filter(None, [getattr(kind, "item_type", None)])]
    return list(found.values())


def test_its_links_lead_to_headings() -> None:
    text = DOCUMENT.read_text()
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings


class Clip(Section, tag="clip", tag_field="kind"):
    """Cut.

    Further thoughts.
    """

    low: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """The smallest
    one."""


class Free(Section, tag="free", tag_field="kind"):
    """Do not."""


class Example(Section, kw_only=True):
    """An example."""

    path: str
    """A file."""
    wait_s: Annotated[float, Meta(gt=0)] | None = 5.0
    """How long."""
    cut: Clip | Free = Clip(low=0.3)
    """What to do."""


def test_a_reference_has_units_bounds_kinds_and_defaults() -> None:
    text = reference(Example)
    assert "| `path` | text | required | A file. |" in text
    assert "| `wait_s` | number > 0, seconds, or `null` | `5.0` | How long. |" in text
    assert '| `cut` | section with a `kind`, [below](#cut) | `{ kind = "clip", low = 0.3 }` | What to do. |' in text
    assert "### `cut`: `clip`\n\nCut.\n\n| key" in text
    assert "| `cut.low` | number >= 0, <= 1 | `0.2` | The smallest one. |" in text
    assert text.endswith("### `cut`: `free`\n\nDo not.\n")


def test_a_key_that_nothing_describes_is_an_error_and_an_inherited_description_holds() -> None:
    class Silent(Section):
        """Says nothing."""

        key: int = 0

    class Louder(Example):
        """With another default."""

        path: str = "here"

    with pytest.raises(TypeError, match=r"Silent\.key has no description"):
        reference(Silent)
    assert descriptions(Louder)["path"] == "A file."


ARGUMENTS = (
    "algorithms/dapo.toml",
    "train.steps=3",
    "sft.0.steps=9",
    'learner.correction={kind="decoupled", cap="null"}',
    "generator={kind='sglang', api_key='xyzzy'}",
)


def test_the_effective_configuration_decodes_to_the_same_and_hides_secrets() -> None:
    demo = ROOT / "configs" / "demo.toml"
    text = effective(demo, *ARGUMENTS)
    found = decode(tomllib.loads(text), Config, source="effective")
    wanted = Config.load(demo, *ARGUMENTS, "generator.api_key=(hidden)")
    assert found == wanted
    assert found.learner.correction == msgspec.structs.replace(wanted.learner.correction, cap=None)
    assert "xyzzy" not in text


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_complete_configuration_survives_being_shown(path: Path) -> None:
    assert decode(tomllib.loads(effective(path)), Config, source="effective") == Config.load(path)


def test_each_value_says_where_it_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["config", "configs/demo.toml", *ARGUMENTS]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert {
        "steps = 3 # command line",
        "steps = 9 # command line",
        "steps = 1600 # configs/demo.toml",
        "eps_high = 0.28 # algorithms/dapo.toml",
        "batch_size = 12 # configs/demo.toml",
        "max_staleness = 1 # default",
        'cap = "null" # command line',
        "# limit is unset",
    } <= lines


@pytest.mark.parametrize("argv", [["config"], ["config", "configs/demo.toml", "--reference"]], ids=" ".join)
def test_a_configuration_or_the_reference_is_shown_and_not_both(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == "arpo: arpo config needs a CONFIG, or --reference, and not both\n"

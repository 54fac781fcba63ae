"""Every command line of the pages is one that the parser takes, with configurations that decode."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from actors.cli import main, parse
from actors.config import Config
from tests.documents import PAGES, ROOT, blocks, command_lines, spans

PLACEHOLDERS = {"CONFIG": "configs/demo.toml", "N": "3", "F": "F.jsonl", "NAME": "decode", "|": ""}
"""What a page leaves to its reader, and what stands for it here."""


def arpo_lines() -> list[tuple[str, str]]:
    """(page, words) of each line that begins with `arpo`, and of each span that is a whole command."""
    found: list[tuple[str, str]] = []
    for page, text in PAGES.items():
        lines = command_lines(text, "arpo")
        lines += [span.removeprefix("arpo ") for span in spans(text) if re.fullmatch(r"arpo \w+ .*[^.]", span)]
        found += [(page, line) for line in dict.fromkeys(lines) if "..." not in line and "--help" not in line]
    return found


def taken(line: str) -> list[str]:
    """The words of a line, with something in place of what is left to the reader; of alternatives the first."""
    line = re.sub(r"([\w-]+)( \| [\w-]+)+", r"\1", line)
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]


LINES = [pytest.param(page, line, id=f"{page}-{line}") for page, line in arpo_lines()]


def test_there_are_command_lines_on_many_pages() -> None:
    assert len({page for page, _ in arpo_lines()}) > 8


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_line_is_parsed_and_its_configuration_decodes(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = parse(taken(line))
    monkeypatch.chdir(ROOT)
    config = getattr(arguments, "config", None)
    if config is None:
        return
    if not Path(config).exists():  # one that the page itself shows, or its reader's own
        files = [config, *(word for word in arguments.overrides if word.endswith(".toml"))]
        for name in (name for name in files if not (ROOT / "configs" / name).exists()):
            (tmp_path / name).write_text(shown_as(name))
        monkeypatch.chdir(tmp_path)
    Config.load(config, *arguments.overrides)


def shown_as(name: str) -> str:
    """The first block of the page that speaks of saving it under this name; the demo for a name that none shows."""
    for text in PAGES.values():
        if f"`{name}`" in text and name in ("stock.toml", "real.toml"):
            place = re.search(rf"[Ss]ave(?:d as| this as) `{name}`", text)
            assert place is not None, name
            before, behind = text[: place.start()], text[place.start() :]
            # Said before the block, or behind it.
            return blocks(behind, "toml")[0] if name == "stock.toml" else blocks(before, "toml")[-1]
    return (ROOT / "configs" / "demo.toml").read_text()


def test_every_target_of_make_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[0] for text in PAGES.values() for line in command_lines(text, "make") if line}
    named |= {span.split()[1] for text in PAGES.values() for span in spans(text) if re.match(r"make \w", span)}
    assert named
    assert named <= targets


def test_every_program_and_module_that_is_named_is_there() -> None:
    lines = [line for text in PAGES.values() for line in command_lines(text, "python")]
    lines += [
        span.removeprefix("python ") for text in PAGES.values() for span in spans(text) if span.startswith("python ")
    ]
    for words in map(str.split, lines):
        if words[0] == "-c":
            continue
        if words[0] == "-m":
            module = ROOT / words[1].replace(".", "/")
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), words
        else:
            assert (ROOT / words[0]).exists(), words


def test_every_extra_that_is_named_is_declared() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"arpo-engine\[([\w,]+)\]", "".join(PAGES.values())):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_every_file_that_is_named_in_the_house_is_there() -> None:
    for page, text in PAGES.items():
        for span in spans(text):
            if re.fullmatch(r"(configs|examples|tests|requirements)/[\w/.]+\.\w+", span):
                assert (ROOT / span).exists(), f"{page}: {span}"


@pytest.mark.parametrize(
    "line", ["doctor configs/demo.toml", "config configs/demo.toml", "config --reference", "bench --help"]
)
def test_cheap_ones_are_run(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    try:
        code = main(line.split())
    except SystemExit as end:
        code = end.code
    assert code == 0
    captured = capsys.readouterr()
    assert captured.out or captured.err


def test_python_on_the_pages_is_python() -> None:
    for text in PAGES.values():
        for block in blocks(text, "python"):
            ast.parse(block)

"""What the troubleshooting page quotes is what the code says, and the keys it names are there."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest

from actors.config import Config
from engine.config import decode
from engine.errors import ConfigError
from tests.configuration_keys import is_key
from tests.documents import PAGES, ROOT, spans

TEXT = PAGES["docs/troubleshooting.md"]
QUOTED = [
    " ".join(message.split())
    for message in re.findall(r"^\* `([^`]+)`:", TEXT, re.MULTILINE)
    if not re.match(r"(exit code|loss is)", message)
]
DECODING: dict[str, dict[str, Any]] = {
    "Object contains unknown field ... - at ...": {"train": {"step": 3}},
    "Object missing required field ... - at ...": {"learner": {"loss": {"eps_low": 0.1}}},
    "Expected ..., got ... - at ...": {"train": {"steps": "many"}},
}
"""What the decoder itself says, and input of which it says so."""


def sayings() -> Iterator[str]:
    """Every text in the source, with `...` for what is put into it when it is said."""
    for package in ("engine", "tools", "learner", "actors"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Constant(value=str(text)):
                        # Of `%`-arguments of a log, too.
                        yield " ".join(re.sub(r"%(s|d|r|g|\.\d+f)", "...", text).split())
                    case ast.JoinedStr(values=parts):
                        said = (part.value if isinstance(part, ast.Constant) else "..." for part in parts)
                        yield " ".join("".join(map(str, said)).split())
                    case _:
                        pass


SAYINGS = set(sayings())


def is_said(message: str) -> bool:
    """Whether one text of the source holds the literal parts in their order."""
    parts = [part for part in (part.strip(" :;") for part in message.split("...")) if part]
    pattern = re.compile(".*".join(map(re.escape, parts)))
    return any(pattern.search(saying) for saying in SAYINGS)


def test_it_quotes_a_good_part_of_what_can_be_said() -> None:
    assert len(QUOTED) > 40


@pytest.mark.parametrize("message", [message for message in QUOTED if message not in DECODING])
def test_a_quoted_message_is_one_of_the_code(message: str) -> None:
    assert is_said(message)


def test_a_message_that_nobody_says_is_noticed() -> None:
    assert not is_said("...: the moon is in the way of ...")


@pytest.mark.parametrize("message", DECODING)
def test_a_quoted_message_is_one_of_the_decoder(message: str) -> None:
    assert message in QUOTED
    good = {"model": {"kind": "tiny"}, "data": {"path": "x"}}
    with pytest.raises(ConfigError) as error:
        decode(good | DECODING[message], Config, source="x.toml")
    parts = [re.escape(part) for part in message.split("...")]
    assert re.search(".*".join(parts), str(error.value))


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_a_page_names_are_keys(page: str) -> None:
    named = [span.partition("=")[0] for span in spans(PAGES[page])]
    named = [word for word in named if not word.endswith((".json", ".jsonl"))]
    keys = [word for word in named if re.fullmatch(rf"({'|'.join(Config.__struct_fields__)})(\.[a-z_0-9]+)+", word)]
    modules = {key for key in keys if (ROOT / (key.replace(".", "/") + ".py")).exists()}
    assert [key for key in keys if key not in modules and not is_key(key)] == []

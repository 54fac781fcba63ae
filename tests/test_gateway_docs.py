"""docs/embedding.md tells the truth: its endpoints exist, its commands are taken, its Python runs."""

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from actors.cli import main
from tests.gateway_world import world

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "embedding.md").read_text()


def test_every_endpoint_of_the_table_is_there_and_no_other(tmp_path: Path) -> None:
    table = TEXT.split("| endpoint |")[1].split("\n\n")[0]
    shown = set[str]()
    for row in table.splitlines()[2:]:
        for method, path in re.findall(r"`(GET|POST|DELETE) ([^`]+)`", row.split(" | ")[0]):
            shown.add(f"{method} {path.replace('ID', '{name}')}")
        named = re.findall(r"`(/\w+)`", row.split(" | ")[0])
        shown |= {f"POST /v1/conversations/{{name}}{verb}" for verb in named}

    async def served() -> set[str]:
        async with world(tmp_path) as here:
            routes = here.serving._app().router.routes()
            return {f"{route.method} {route.resource.canonical}" for route in routes if route.method != "HEAD"}

    assert shown == asyncio.run(served())


def test_its_commands_are_taken() -> None:
    lines = re.findall(r"^    arpo (.+)$", TEXT, re.MULTILINE)
    assert lines
    for line in lines:
        with pytest.raises(SystemExit) as end:
            main([*line.split(), "--help"])
        assert end.value.code == 0


def test_its_python_runs() -> None:
    for snippet in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        names: dict[str, object] = {}
        exec(snippet, names)
        assert "client" in names


def test_its_keys_are_what_a_file_of_keys_holds() -> None:
    import tomllib

    from actors.gateway.keys import TenantKeys

    (block,) = re.findall(r"^    (\[support-agent\]\n(?:    .+\n)+)", TEXT, re.MULTILINE)
    found = msgspec.convert(tomllib.loads(block), dict[str, TenantKeys])
    assert list(found) == ["support-agent"]

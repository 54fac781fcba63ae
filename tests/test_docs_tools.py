"""docs/tools.md tells the truth: its sections, its declarations, its rewards, and what its programs do."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from engine.types import Reward, ToolCall
from tests.documents import PAGES, blocks
from tools.config import RewardConfig, ToolsConfig
from tools.executor import Executor
from tools.mcp_config import McpConfig
from tools.mcp_tools import mcp_tools
from tools.schema import Tool

TEXT = PAGES["docs/tools.md"]
SERVER, FORECAST, _, REWARD = blocks(TEXT, "python")


def table(heading: str) -> list[str]:
    """The first cells of the rows of a table."""
    rows = TEXT.split(f"\n| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip() for row in rows]


def names_of(program: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(program, "docs/tools.md", "exec", dont_inherit=True), names)
    return names


def test_every_kind_of_tool_has_a_row_and_no_other() -> None:
    sections = [re.sub(r"[`\[\]]|tools\.", "", cell) for cell in table("section")]
    others = {"reward", "cache", "breaker", "max_result_chars"}
    assert set(sections) == set(ToolsConfig.__struct_fields__) - others


def test_every_reward_has_a_row_and_no_other() -> None:
    kinds = get_args(get_type_hints(RewardConfig)["kind"])
    assert [cell.strip("`") for cell in table("`tools.reward.kind`")] == list(kinds)


def test_what_a_tool_may_declare_is_what_there_is() -> None:
    declared = {name for cell in table("it declares") for name in re.findall(r"`(\w+)`", cell)}
    assert declared <= {field.name for field in msgspec.inspect.type_info(ToolsConfig).fields} | set(
        Tool.__dataclass_fields__
    )


def test_arguments_are_converted_and_what_is_wrong_is_a_sentence() -> None:
    forecast = names_of(FORECAST)["forecast"]

    async def asked(**arguments: Any) -> tuple[str, str]:
        async with Executor([forecast]) as executor:
            result = await executor.call(ToolCall(name="forecast", arguments=arguments))
            return result.status, result.text

    assert asyncio.run(asked(city="Ulm", days="3")) == ("ok", "Ulm: rain, for 3 days")
    status, text = asyncio.run(asked(city="Ulm", days=9))
    assert status == "malformed"
    assert re.search(r"`int` <= 7.*\bdays\b", text)


def test_the_reward_scores_an_answer() -> None:
    reward = names_of(REWARD)["reward"]

    async def scored(text: str, *tools_run: str) -> Reward:
        async with Executor([reward]) as executor:
            arguments = {"text": text, "ground_truth": "4", "tools_run": tools_run}
            result = await executor.call(ToolCall(name="reward", arguments=arguments))
            return msgspec.json.decode(result.text, type=Reward)

    assert asyncio.run(scored("it is 4", "search")) == Reward(score=1.1, is_correct=True)
    assert asyncio.run(scored("it is 5")) == Reward(score=0.0)


@pytest.mark.real
@pytest.mark.timeout(120)
def test_the_mcp_server_serves_its_tool(tmp_path: Path) -> None:
    (tmp_path / "units.py").write_text(SERVER)
    (metres,) = mcp_tools(McpConfig(name="units", command=(sys.executable, str(tmp_path / "units.py"))))

    async def asked() -> str:
        async with Executor([metres]) as executor:
            return (await executor.call(ToolCall(name="metres", arguments={"feet": 10}))).text

    assert asyncio.run(asked()) == "3.05"

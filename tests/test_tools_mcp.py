"""MCP servers as tools: real ones, over stdio and HTTP, and those that fail, hang, die or never were."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import config as configuration
from engine.branching import Arpo
from engine.budget import Account
from engine.cohort import Cohort
from engine.errors import ConfigError
from engine.events import AnyTreeEvent, ToolFinished
from engine.granting import Paper
from engine.inference.scripted import Script, ScriptedGenerator
from engine.renderer import RendererConfig, make_renderer
from engine.rollout import TreeRollout
from engine.rollout_config import RolloutConfig
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_bpe_tokenizer
from engine.tree import TreeBuilder
from engine.types import GenerateRequest, Prompt, Reward, ToolCall, ToolResult, TrajectoryGroup
from tools.config import ToolsConfig, build_executor
from tools.executor import Executor
from tools.local_site import LocalSite, Page, Visit
from tools.schema import tool

SERVER = Path(__file__).with_name("mcp_server.py")
TIME = (sys.executable, "-m", "mcp_server_time", "--local-timezone", "UTC")


def config(*servers: dict[str, object], **sections: object) -> ToolsConfig:
    return configuration.decode({"mcp": list(servers), **sections}, ToolsConfig, source="test")


def ours(**changes: object) -> dict[str, object]:
    return {"name": "ours", "command": [sys.executable, str(SERVER)]} | changes


def with_server(main: Callable[[Executor], Awaitable[Any]], **changes: object) -> Any:
    executor = build_executor(config(ours(**changes)))

    async def run() -> Any:
        async with executor:
            return await main(executor)

    return asyncio.run(run())


def ask(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def process_of(result: ToolResult) -> int:
    return int(result.text.rpartition(" ")[2])


@pytest.mark.real
def test_a_servers_tools_become_tools_and_its_process_ends_with_us(tmp_path: Path) -> None:
    log = tmp_path / "server.log"

    async def main(executor: Executor) -> int:
        assert [spec.name for spec in executor.specs] == ["t_add", "t_fail", "t_draw"]
        assert executor.specs[0].description == "Add two numbers."
        assert executor.specs[0].parameters["required"] == ["a"]
        sums = await asyncio.gather(*(executor.call(ask("t_add", a=str(n))) for n in range(9)))
        assert [result.text.split()[0] for result in sums] == [str(n + 1) for n in range(9)]
        assert len({process_of(result) for result in sums}) == 1
        wrong, failed, drawn = await asyncio.gather(
            executor.call(ask("t_add", a="many")),
            executor.call(ask("t_fail", reason="no")),
            executor.call(ask("t_draw")),
        )
        assert (wrong.status, wrong.text) == (
            "malformed",
            "t_add: a: 'many' is not of type 'integer'. Arguments: a, b.",
        )
        assert (failed.status, "no" in failed.text) == ("error", True)
        assert (drawn.status, drawn.text) == ("ok", "a picture:\n[image: image/png]")
        return process_of(sums[0])

    process = with_server(main, include=["add", "fail", "draw"], prefix="t_", log=str(log))
    assert not psutil.pid_exists(process)
    assert "the server says hello" in log.read_text()


@pytest.mark.real
def test_every_call_has_a_deadline_and_a_server_that_died_comes_back() -> None:
    async def when_up(executor: Executor, call: ToolCall) -> ToolResult:
        """The first result that is not just late: a server may take longer to start than a call has."""
        while (result := await executor.call(call)).status == "timeout":
            pass
        return result

    async def main(executor: Executor) -> None:
        before = await when_up(executor, ask("add", a=0))
        hung, added = await asyncio.gather(executor.call(ask("hang")), executor.call(ask("add", a=1)))
        assert (hung.status, hung.text) == ("timeout", "hang: no result after 1.5 s.")
        assert added.status == "ok", "the others do not wait for it"
        assert process_of(added) == process_of(before)
        died = await executor.call(ask("die"))
        assert (died.status, died.text) == ("error", "ours: Connection closed")
        again = await when_up(executor, ask("add", a=2))
        assert again.text.startswith("3 in process")
        assert process_of(again) != process_of(added)
        # A dead server is noticed by the next call, which starts it again where that does no harm.
        psutil.Process(process_of(again)).kill()
        assert (await when_up(executor, ask("add", a=3))).text.startswith("4 in process")

    with_server(main, timeout_s=1.5)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ({"command": ["no-such-server"]}, "No such file or directory: 'no-such-server'"),
        ({"command": [sys.executable, "-c", "1"]}, "Connection closed"),
        ({"command": ["sleep", "60"], "start_timeout_s": 0.2}, "no answer within 0.2 s"),
        ({"command": (), "url": "http://127.0.0.1:9/mcp"}, "All connection attempts failed"),
        ({"log": "/no/such/folder/log"}, "log /no/such/folder/log: No such file or directory"),
        ({"key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line_at_the_start(server: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_executor(config(ours(**server)))
    assert reason in str(error.value)
    assert str(error.value).endswith(" - at $.tools.mcp[0]")
    assert "\n" not in str(error.value)


def test_a_tool_that_a_server_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match="no tool 'subtract'; there are: add, fail, hang, die, draw - at"):
        build_executor(config(ours(include=["subtract"])))


def test_a_server_needs_a_command_or_a_url() -> None:
    for wrong in ({"command": []}, {"url": "http://127.0.0.1:9/mcp"}):
        with pytest.raises(ConfigError, match="needs a command or a url, and not both"):
            config(ours(**wrong))


@pytest.fixture
def http_url() -> Iterator[str]:
    """A server of ours over HTTP."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SERVER), str(port)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert any("running on" in line for line in process.stderr)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.real
def test_a_server_over_http_is_called_by_many_at_once(http_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_KEY", "s3cret")

    async def main(executor: Executor) -> None:
        results = await asyncio.gather(*(executor.call(ask("add", a=n)) for n in range(50)))
        assert [result.text.split()[0] for result in results] == [str(n + 1) for n in range(50)]
        counts = executor.statistics().tools["add"]
        assert (counts.num_ok, counts.num_shared) == (50, 0)

    with_server(main, command=(), url=http_url, key_env="MCP_KEY", pure=["add"])


# -- in a rollout -----------------------------------------------------------------------------------------------------

TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
"""


def said(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


TURNS = (
    said("search", query="minster of Ulm") + said("get_current_time", timezone="Europe/Berlin"),
    said("convert_time", source_timezone="UTC", time="12:00", target_timezone="Asia/Tokyo"),
    "It is in Ulm.",
)


@pytest.mark.real
def test_a_registrys_mcp_server_and_a_search_r1_server_serve_a_branching_rollout(tmp_path: Path) -> None:
    make_bpe_tokenizer(tmp_path, texts=TURNS, vocab_size=400, special_tokens=("<tool_call>", "</tool_call>"))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(tmp_path)
    start = tokenizer.encode("<|im_start|>")[0]

    def policy(request: GenerateRequest) -> Script:
        """Turn by turn, from wherever the path stands; more unsure behind each result."""
        tokens = request.token_ids.tolist()
        turn = tokens.count(start) // 2 - 1
        ids = tokenizer.encode(TURNS[turn] + "<|im_end|>")
        header = len(tokenizer.encode("<|im_start|>assistant\n"))
        behind = len(tokens) - 1 - tokens[::-1].index(start)
        return Script(token_ids=ids[len(tokens) - behind - header :], entropies=[0.1 + turn] * len(ids), token_s=0.001)

    @tool(visible=False)
    async def reward(text: str, ground_truth: str, tools_run: tuple[str, ...] = ()) -> Reward:
        """R."""
        return Reward(score=float(ground_truth in text and len(set(tools_run)) == 3))

    def documents(seen: Visit) -> Page:
        found = [{"document": {"contents": '"Ulm"\nIts minster is tall.'}, "score": 1.0}]
        return Page(content={"result": [found for _ in seen.json()["queries"]]})

    async def main() -> tuple[TrajectoryGroup, list[ToolResult], list[Visit]]:
        async with LocalSite(documents) as site:
            world = config({"name": "time", "command": TIME}, retriever={"url": f"{site.url}/retrieve"})
            async with build_executor(world, reward=reward) as tools:
                renderer = make_renderer(RendererConfig(format="hermes"), tokenizer=tokenizer, specs=tools.specs)
                prompt_ids = renderer.render_prompt([{"role": "user", "content": "Where is it?"}])
                prompt = Prompt(prompt_id="p", epoch=0, row=0, token_ids=prompt_ids, question="", ground_truth="Ulm")
                events: list[AnyTreeEvent] = []
                run = Account("run", limit=40)
                rollout = TreeRollout(
                    TreeBuilder(prompt),
                    config=RolloutConfig(size=4, branching=Arpo(initial=2, probe_tokens=3)),
                    seed=0,
                    cohort=Cohort(0, size=1, granting=Paper(), leaves=Account("l"), tool_calls=run, is_logical=False),
                    generator=ScriptedGenerator(policy),
                    tools=tools,
                    renderer=renderer,
                    vocab_size=tokenizer.vocab_size,
                    emit=events.append,
                )
                group = await rollout.run()
                results = [event.result for event in events if isinstance(event, ToolFinished)]
                assert run.spent == sum(result.was_executed for result in results)
                assert run.reserved == 0
                return group, results, site.visits

    group, results, visits = asyncio.run(main())
    assert [t.reward.score for t in group.trajectories] == [1.0] * 4
    assert group.num_forks > 0
    assert {(result.name, result.status) for result in results} == {
        (name, "ok") for name in ("search", "get_current_time", "convert_time")
    }
    searches = [result for result in results if result.name == "search"]
    assert len(visits) == 1, "siblings that search for the same thing cause one request"
    assert [result.outcome for result in searches].count("executed") == 1
    assert group.num_tool_calls_shared + group.num_tool_calls_cached == len(searches) - 1
    assert "Tokyo" in next(result.text for result in results if result.name == "convert_time")

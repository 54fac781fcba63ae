"""The process of an SGLang server: it is up or it says why not, and it ends with whoever started it.

Most tests start a shell instead of a server: what is tested is who lives how long.
"""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import psutil
import pytest

from actors.sglang_server import SHIMS, TETHER, SglangServer, server_command, sglang_server
from engine.errors import ConfigError, GeneratorLostError, StalledError
from engine.inference.sglang import is_ready
from engine.inference.sglang_config import SglangConfig
from engine.inference.sglang_http import SglangHttp
from engine.inference.tiny import make_tiny_model
from engine.ports import free_port
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parent.parent
SGLANG_PYTHON = ROOT / ".venv-sglang" / "bin" / "python"
SERVES = "sleep 600 & echo $! > child; touch up; echo serving; wait"
"""Starts a process of its own, as SGLang does, says so, and waits for it."""


@asynccontextmanager
async def fake_server(
    script: str, folder: Path, *, start_timeout_s: float = 30.0
) -> AsyncGenerator[SglangServer, None]:
    """A shell in `folder` that is ready when there is a file `up`."""

    async def is_up() -> bool:
        return (folder / "up").exists()

    async with sglang_server(
        "server-0",
        ["sh", "-c", f"cd '{folder}'; {script}"],
        url="http://nowhere",
        environment=dict(os.environ),
        log=folder / "logs" / "server-0.log",
        is_ready=is_up,
        start_timeout_s=start_timeout_s,
    ) as server:
        yield server


def child_in(folder: Path) -> psutil.Process:
    """What the fake server has started."""
    return psutil.Process(int((folder / "child").read_text()))


def living(folder: Path, *processes: psutil.Process) -> list[psutil.Process]:
    """Those of these that do not end soon, and of all that have to do with a fake server in `folder`."""
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(folder) or str(folder) in " ".join(process.info["cmdline"] or ()):
            processes = (*processes, process)
    return [process for process in processes if not ends_soon(process)]


def ends_soon(process: psutil.Process) -> bool:
    try:
        end = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    with os.fdopen(end):
        return select.select([end], [], [], 20.0)[0] == [end]


def test_leaving_the_block_ends_the_server_and_what_it_started(tmp_path: Path) -> None:
    async def main() -> psutil.Process:
        async with fake_server(SERVES, tmp_path) as server:
            assert server.url == "http://nowhere"
            return child_in(tmp_path)

    assert living(tmp_path, asyncio.run(main())) == []


def test_a_server_that_ends_before_it_is_ready_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(GeneratorLostError) as caught:
            async with fake_server("for n in $(seq 20); do echo line $n; done; exit 3", tmp_path):
                pass
        first, *lines = str(caught.value).splitlines()
        assert first == f"server-0 did not start: exit code 3; the end of {tmp_path}/logs/server-0.log:"
        assert lines == [f"  line {number}" for number in range(9, 21)]

    asyncio.run(main())
    assert living(tmp_path) == []


def test_a_server_that_is_not_ready_in_time_is_named_and_ended(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(StalledError, match=r"^server-0 did not start within 0.3 s; see "):
            async with fake_server("sleep 600", tmp_path, start_timeout_s=0.3):
                pass

    asyncio.run(main())
    assert living(tmp_path) == []


def test_a_start_that_is_cancelled_at_any_moment_leaves_no_process(tmp_path: Path) -> None:
    async def main(num_steps: int) -> None:
        async with asyncio.TaskGroup() as group:
            start = group.create_task(fake_server("sleep 600 & wait", tmp_path).__aenter__())
            for _ in range(num_steps):
                await asyncio.sleep(0)
            start.cancel()
        assert start.cancelled()

    for num_steps in range(12):
        asyncio.run(main(num_steps))
    assert living(tmp_path) == []


@pytest.mark.parametrize(("how", "code"), [("kill -9 $$", 137), ("exit 4", 4)])
def test_an_end_is_told_with_its_exit_code_and_takes_the_rest_of_the_group_along(
    tmp_path: Path, how: str, code: int
) -> None:
    async def main() -> psutil.Process:
        script = f"sleep 600 & echo $! > child; mkfifo order; touch up; read order < order; {how}"
        async with fake_server(script, tmp_path) as server:
            (tmp_path / "order").write_text("end\n")
            assert await server.ended() == f"exit code {code}; the end of {tmp_path}/logs/server-0.log:"
            return child_in(tmp_path)

    assert living(tmp_path, asyncio.run(main())) == []


def test_a_server_ends_with_a_parent_that_is_shot(tmp_path: Path) -> None:
    """The parent gets no chance to close anything: the kernel closes its socket, and the tether sees that."""
    code = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.test_sglang_server import SERVES, fake_server

async def main():
    async with fake_server(SERVES, Path({str(tmp_path)!r})):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        processes = psutil.Process(parent.pid).children(recursive=True)
        assert child_in(tmp_path) in processes
        parent.kill()
    assert living(tmp_path, *processes) == []


@pytest.mark.parametrize("how", ["closed", "told", "shot"])
def test_whatever_befalls_a_tether_it_kills_also_what_does_not_heed_it(
    tmp_path: Path, how: Literal["closed", "told", "shot"]
) -> None:
    ours, theirs = socket.socketpair()
    script = "trap '' TERM; sleep 600 & trap 'exit 0' TERM; echo $!; wait"
    command = [sys.executable, "-IS", TETHER, str(theirs.fileno()), "sh", "-c", script]
    with (
        ours,
        theirs,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=(theirs.fileno(),)) as tether,
    ):
        theirs.close()
        assert tether.stdout is not None
        deaf = psutil.Process(int(tether.stdout.readline()))
        others = psutil.Process(tether.pid).children(recursive=True)
        assert deaf in others
        match how:
            case "closed":
                ours.close()
            case "told":
                tether.send_signal(signal.SIGTERM)
            case "shot":
                tether.send_signal(signal.SIGKILL)
        assert tether.wait(20) == (-signal.SIGKILL if how == "shot" else 0)
    assert living(tmp_path, *others) == []


# -- the command line -----------------------------------------------------------------------------------------------


def command_of(config: SglangConfig) -> tuple[list[str], dict[str, str]]:
    return asyncio.run(server_command(config, model_path="/model", version=7, port=1234, threads=3))


def fake_python(folder: Path, *, has_cuda: bool) -> str:
    """An interpreter with sglang, as far as one asks it."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\necho \'{{"has_sglang": true, "has_cuda": {str(has_cuda).lower()}}}\'\n')
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_that_cannot_serve_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^\S*python\S* has no sglang: .*make sglang.* - at \$\.generator\.python$"):
        command_of(SglangConfig(python=sys.executable))
    with pytest.raises(ConfigError, match=r"^/nowhere: No such file .*make sglang.* - at \$\.generator\.python$"):
        command_of(SglangConfig(python="/nowhere"))
    with pytest.raises(ConfigError, match=r"^/bin/true is no Python that works - at \$\.generator\.python$"):
        command_of(SglangConfig(python="/bin/true"))


def test_on_a_gpu_the_server_is_the_ordinary_one(tmp_path: Path) -> None:
    config = SglangConfig(python=fake_python(tmp_path, has_cuda=True), args=("--tp", "8"), api_key="secret")
    command, environment = command_of(config)
    said = " ".join(command)
    assert "--weight-version 7" in said
    assert "--host 127.0.0.1 --port 1234" in said
    assert "--api-key secret" in said
    assert said.endswith("--tp 8")
    assert not {"--device", "--dtype", "--max-total-tokens", "--attention-backend"} & set(command)
    assert environment == dict(os.environ)


def test_on_a_cpu_it_has_the_shims_float32_and_a_bounded_cache(tmp_path: Path) -> None:
    config = SglangConfig(python=fake_python(tmp_path, has_cuda=False), args=("--random-seed", "1"))
    command, environment = command_of(config)
    said = " ".join(command)
    assert "--device cpu" in said
    assert "--dtype float32" in said
    assert "--max-total-tokens" in said
    assert said.endswith("--random-seed 1")
    assert environment["PYTHONPATH"] == str(SHIMS)
    assert environment["OMP_NUM_THREADS"] == "3"
    given = " ".join(command_of(SglangConfig(python=config.python, max_kv_tokens=77, dtype="bfloat16"))[0])
    assert "--max-total-tokens 77" in given
    assert "--dtype bfloat16" in given


# -- the real one ---------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.timeout(240)
def test_the_real_server_answers_with_its_version_and_tells_its_end(folder: Path, tmp_path: Path) -> None:
    make_word_tokenizer(folder, words=["who", "is", "it"])
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    make_tiny_model(folder, vocab_size=load_tokenizer(folder).vocab_size, **sizes)
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    async def main() -> list[psutil.Process]:
        config = SglangConfig(python=str(SGLANG_PYTHON), max_kv_tokens=8192, api_key="secret")
        command, environment = await server_command(config, model_path=str(folder), version=7, port=port, threads=1)
        async with sglang_server(
            "server-0",
            command,
            url=url,
            environment=environment,
            log=tmp_path / "log",
            is_ready=lambda: is_ready(url, api_key="secret"),
            start_timeout_s=180,
        ) as server:
            (keeper,) = psutil.Process(server.pid).children()
            leader, *others = keeper.children(recursive=True)
            assert {os.getpgid(process.pid) for process in (leader, *others)} == {leader.pid}
            assert len(others) >= 2, "scheduler and detokenizer are processes of their own"
            async with SglangHttp(url, timeout_s=30, api_key="secret") as http:
                assert (await http.get("/model_info"))["weight_version"] == "7"
                body = {"input_ids": [0, 1], "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
                meta = (await http.post("/generate", body))["meta_info"]
                assert meta["weight_versions"] == [{"version": "7", "start": 0, "end": 4}]
            leader.kill()
            async with asyncio.timeout(30):
                reason = await server.ended()
            assert reason.startswith("exit code 137; the end of ")
            assert "POST /generate" in reason
            return [keeper, leader, *others]

    assert living(tmp_path, *asyncio.run(main())) == []

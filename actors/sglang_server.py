"""SglangServer: the process of one SGLang server, from its start to its end.

On CUDA it is the ordinary server. On a CPU it needs three environment variables, a few arguments, and the two shims of
`sglang_cpu_shims/`, which are on the path of that server and of nothing else.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec

from actors.process import TERMINATE_S, end_process, tail
from engine.errors import ConfigError, GeneratorLostError, StalledError
from engine.inference.sglang_config import SglangConfig

POLL_S = 0.25
"""Between two looks at a server that is starting."""
CPU_KV_TOKENS = 65_536
"""`max_kv_tokens` of a server on a CPU that was given none."""
PROBE_S = 120.0
"""How long an interpreter may take to say what it has."""
REMEDY = "'make sglang' makes .venv-sglang for CPUs, and where there is CUDA pip install 'arpo-engine[sglang]'"
TETHER = Path(__file__).with_name("tether.py")
SHIMS = Path(__file__).with_name("sglang_cpu_shims")
_PROBE = """
import importlib.util, json, sys
found = importlib.util.find_spec("sglang") is not None
cuda = False
if found and sys.argv[1] == "auto":
    import torch
    cuda = torch.cuda.is_available()
print(json.dumps({"has_sglang": found, "has_cuda": cuda}))
"""


class _Probed(msgspec.Struct):
    has_sglang: bool
    has_cuda: bool


class SglangServer:
    """A server that answers."""

    def __init__(self, url: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.url = url
        self.pid = process.pid
        """Of the tether: the server ends with it."""
        self._process = process
        self._log = log

    async def ended(self) -> str:
        """Wait until the process has ended; returns why, with the end of its log."""
        code = await self._process.wait()
        return "\n  ".join([f"exit code {code}; the end of {self._log}:", *tail(self._log)])


@asynccontextmanager
async def sglang_server(
    name: str,
    command: Sequence[str],
    *,
    url: str,
    environment: dict[str, str],
    log: Path,
    is_ready: Callable[[], Awaitable[bool]],
    start_timeout_s: float,
) -> AsyncGenerator[SglangServer, None]:
    """Run a server for the length of the block; its output goes to `log`.

    Raises `GeneratorLostError`, with the end of the log, where it ends before it is ready, and `StalledError` where it
    is not ready within `start_timeout_s`. The server, and what it started, never outlives the block or this process.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = await _spawn(command, theirs, environment=environment, log=log)
        server = SglangServer(url, process, log)
        try:
            await _until_ready(name, server, is_ready, start_timeout_s=start_timeout_s)
            yield server
        finally:
            ours.close()  # the tether notices, and ends the whole group
            await end_process(process, patience_s=2 * TERMINATE_S)


async def server_command(
    config: SglangConfig, *, model_path: str, version: int, port: int, threads: int
) -> tuple[list[str], dict[str, str]]:
    """The command line of a server and its environment.

    Raises `ConfigError` where the interpreter is not there, or has no sglang.
    """
    python = config.python or sys.executable
    device = await _device(python, config.device)
    command = [python, "-m", "sglang.launch_server", "--model-path", model_path, "--served-model-name", "policy"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--weight-version", str(version)]
    command += ["--incremental-streaming-output"]
    if config.dtype != "auto" or device == "cpu":
        command += ["--dtype", "float32" if config.dtype == "auto" else config.dtype]
    # On a CPU SGLang takes most of the machine's memory for keys and values, and touches all of it.
    max_kv_tokens = config.max_kv_tokens or (CPU_KV_TOKENS if device == "cpu" else None)
    if max_kv_tokens is not None:
        command += ["--max-total-tokens", str(max_kv_tokens)]
    if config.api_key is not None:
        command += ["--api-key", config.api_key]
    environment = dict(os.environ)
    if device == "cpu":
        command += ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
        command += ["--grammar-backend", "none", "--disable-cuda-graph", "--skip-server-warmup", "--sleep-on-idle"]
        environment |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            "OMP_NUM_THREADS": str(threads),
            "TORCHDYNAMO_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(SHIMS),
        }
    return [*command, *config.args], environment


async def _device(python: str, wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-c", _PROBE, wanted, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError as error:
        raise ConfigError(f"{python}: {error.strerror}; {REMEDY} - at $.generator.python") from None
    try:
        async with asyncio.timeout(PROBE_S):
            output, _ = await process.communicate()
        found = msgspec.json.decode(output, type=_Probed)
    except (TimeoutError, msgspec.DecodeError):
        raise ConfigError(f"{python} is no Python that works - at $.generator.python") from None
    finally:
        await end_process(process, patience_s=0)
    if not found.has_sglang:
        raise ConfigError(f"{python} has no sglang: {REMEDY} - at $.generator.python")
    if wanted == "auto":
        return "cuda" if found.has_cuda else "cpu"
    return wanted


async def _spawn(
    command: Sequence[str], theirs: socket.socket, *, environment: dict[str, str], log: Path
) -> asyncio.subprocess.Process:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-IS",  # nothing but the standard library: the tether is up at once
            str(TETHER),
            str(theirs.fileno()),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,  # a Ctrl-C at the terminal is for the controller
        )


async def _until_ready(
    name: str, server: SglangServer, is_ready: Callable[[], Awaitable[bool]], *, start_timeout_s: float
) -> None:
    ending = asyncio.create_task(server.ended(), name=f"watch {name}")
    try:
        async with asyncio.timeout(start_timeout_s):
            while not await is_ready():
                await asyncio.wait({ending}, timeout=POLL_S)
                if ending.done():
                    raise GeneratorLostError(f"{name} did not start: {ending.result()}")
    except TimeoutError:
        raise StalledError(f"{name} did not start within {start_timeout_s:g} s; see its log") from None
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)

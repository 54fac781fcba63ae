"""The `python` tool on another machine: a server with SandboxFusion's interface runs the programs.

    POST URL/run_code {"code": "...", "language": "python", "run_timeout": 30.0, "memory_limit_MB": 1024}
    200 {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "4\n", "stderr": ""}}

What it isolates, and how, is its own affair. What is echoed, and how an error is told, is as in `tools.python`: the
program is sent inside one that does it.
"""

import asyncio
import inspect
from typing import TYPE_CHECKING

import msgspec

from engine.errors import ToolError
from tools.python_config import PythonConfig
from tools.sandbox.program import run
from tools.schema import Tool, tool

if TYPE_CHECKING:
    import aiohttp

_ECHO = inspect.getsource(run)
_MAX_SHOWN_CHARS = 200
"""Of what a server says that is not its interface."""


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the program."""

    status: str
    """`Finished`, `Error`, or `TimeLimitExceeded`."""
    return_code: int | None = None
    stdout: str | None = ""
    stderr: str | None = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer. Produced by the server, consumed here; other fields are not read."""

    status: str
    """`Success`, `Failed` where the program failed, `SandboxError` where the server did."""
    message: str = ""
    run_result: RunResult | None = None


class RemoteSandbox:
    """Programs on the server of a configuration; connections are kept until `aclose`, in each event loop its own."""

    def __init__(self, config: PythonConfig) -> None:
        self._config = config
        self._url = f"{config.url.rstrip('/')}/run_code"
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        self._decoder = msgspec.json.Decoder(Answer)

    async def run(self, code: str) -> str:
        """Run `code`; returns its output, raises `ToolError` with one line when it, or the server, fails.

        It has no deadline of its own; cancellation closes the connection, and the server ends the program in its time.
        """
        answer = await self._ask(f"{_ECHO}\nrun({code!r})\n")
        result = answer.run_result
        if answer.status == "SandboxError" or result is None:
            raise ToolError(f"python: {self._url}: {answer.message or answer.status}")
        if result.status == "TimeLimitExceeded":
            raise ToolError(f"killed: more than {self._config.timeout_s:g} s")
        if result.return_code != 0:
            lines = (result.stderr or "").strip().splitlines()
            raise ToolError(lines[-1] if lines else f"exit code {result.return_code}")
        return self._shown(result.stdout or "")

    async def aclose(self) -> None:
        """Close the connections of the running loop; a later call opens new ones."""
        if (session := self._sessions.pop(asyncio.get_running_loop(), None)) is not None:
            await session.close()

    async def _ask(self, program: str) -> Answer:
        import aiohttp

        request = {
            "code": program,
            "language": "python",
            "run_timeout": self._config.timeout_s,
            "memory_limit_MB": self._config.memory_mib,
        }
        try:
            async with self._session().post(self._url, json=request) as response:
                body = await response.read()
                if response.status != 200:
                    said = " ".join(body.decode("utf-8", "replace").split())[:_MAX_SHOWN_CHARS]
                    raise ToolError(f"python: {self._url} answers {response.status}: {said}")
        except (aiohttp.ClientError, OSError) as error:
            raise ToolError(f"python: {self._url} cannot be reached: {error}") from None
        try:
            return self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise ToolError(f"python: {self._url} does not speak SandboxFusion's interface: {error}") from None

    def _session(self) -> "aiohttp.ClientSession":
        import aiohttp

        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            # The executor has permits and a deadline; these would be second ones.
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=None)
            self._sessions[loop] = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._sessions[loop]

    def _shown(self, text: str) -> str:
        data = text.strip().encode()
        max_bytes = self._config.max_output_kib * 1024
        if len(data) <= max_bytes:
            return data.decode() or "(no output)"
        kept = data[:max_bytes].decode("utf-8", "ignore")
        return f"{kept}\n[cut: {len(data) - max_bytes} bytes of output left out]"


def remote_python_tool(config: PythonConfig) -> Tool:
    """As `tools.python.python_tool`, at `config.url`."""
    sandbox = RemoteSandbox(config)

    @tool(timeout_s=config.timeout_s, max_concurrency=config.max_concurrency, aclose=sandbox.aclose)
    async def python(code: str) -> str:
        """Run Python code in a fresh interpreter. Returns what it prints and the value of its last expression."""
        return await sandbox.run(code)

    return python

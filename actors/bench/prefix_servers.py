"""Real SGLang servers for a bench: where their interpreter is, and how large their pages are."""

import importlib.util
import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from actors.entering import enter_all
from actors.sglang_server import server_command, sglang_server
from engine.errors import ConfigError
from engine.inference.sglang import is_ready
from engine.inference.sglang_config import SglangConfig
from engine.inference.sglang_http import SglangHttp
from engine.ports import reserved_port

START_TIMEOUT_S = 300.0
CHECKOUT = Path(__file__).parents[2]


def find_python(wanted: str | None, *, checkout: Path = CHECKOUT) -> str | None:
    """The interpreter to start servers with: the wanted one, the one that `make sglang` made, or this one where it has
    sglang; None where there is none of them. Raises `ConfigError` for a wanted one that is not there."""
    if wanted is not None:
        if shutil.which(wanted) is None:
            raise ConfigError(f"--sglang-python {wanted}: no such program")
        return wanted
    made = checkout / ".venv-sglang" / "bin" / "python"
    if made.exists():
        return str(made)
    return sys.executable if importlib.util.find_spec("sglang") is not None else None


@asynccontextmanager
async def sglang_servers(
    config: SglangConfig, *, count: int, model_path: str, logs: Path
) -> AsyncGenerator[dict[str, int], None]:
    """Run `count` servers for the length of the block; their addresses, and the page size of each."""
    async with AsyncExitStack() as stack:
        urls: list[str] = []
        servers = []
        for number in range(count):
            name, port = f"sglang-{number}", stack.enter_context(reserved_port())
            url = f"http://127.0.0.1:{port}"
            command, environment = await server_command(config, model_path=model_path, version=0, port=port, threads=1)
            server = sglang_server(
                name,
                command,
                url=url,
                environment=environment,
                log=logs / f"{name}.log",
                is_ready=lambda url=url: is_ready(url),
                start_timeout_s=START_TIMEOUT_S,
            )
            urls.append(url)
            servers.append((name, server))
        await enter_all(servers, stack)
        yield {url: await _page_size(url) for url in urls}


async def _page_size(url: str) -> int:
    async with SglangHttp(url, timeout_s=10.0) as http:
        return int((await http.get("/server_info"))["page_size"])

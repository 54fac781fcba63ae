"""How each kind of generator is started: what the supervisor calls, at first and after a loss."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from actors.config import Config, RuntimeConfig
from actors.messages import StartGenerator
from actors.ports import free_port
from actors.process import actor_process
from actors.remote import RemoteGenerator
from actors.sglang_server import server_command, sglang_server
from engine.errors import GeneratorLostError
from engine.inference.sglang import SglangGenerator, is_ready
from engine.inference.sglang_config import SglangConfig
from engine.inference.supervised import Start
from engine.interfaces import Generator
from engine.types import WeightRef


def generator_starts(config: Config, *, model_path: str, logs: Path) -> list[tuple[str, Start]]:
    """A name and a start for each generator: processes of our own, SGLang servers, or connections to such."""
    generator, runtime = config.generator, config.runtime
    names = [f"generator-{number}" for number in range(runtime.num_generators)]
    if not isinstance(generator, SglangConfig):
        start = StartGenerator(config=generator, model_path=model_path)
        return [(name, partial(_embedded, config.runtime, start, name, logs)) for name in names]
    if generator.urls:
        return [
            (url, partial(_connected, url, generator, model_path, config.train.step_timeout_s))
            for url in generator.urls
        ]
    return [(name, partial(_launched, config, generator, name, model_path, logs)) for name in names]


@asynccontextmanager
async def _embedded(
    runtime: RuntimeConfig, start: StartGenerator, name: str, logs: Path, ref: WeightRef | None
) -> AsyncGenerator[Generator, None]:
    async with actor_process(
        name,
        start,
        kind=GeneratorLostError,
        log=logs / f"{name}.log",
        threads=runtime.threads,
        start_timeout_s=runtime.start_timeout_s,
    ) as caller:
        generator = RemoteGenerator(caller)
        await _bring_up_to_date(generator, ref)
        yield generator


@asynccontextmanager
async def _launched(
    config: Config, sglang: SglangConfig, name: str, model_path: str, logs: Path, ref: WeightRef | None
) -> AsyncGenerator[Generator, None]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command, environment = await server_command(
        sglang, model_path=model_path, version=0, port=port, threads=config.runtime.threads
    )
    server = sglang_server(
        name,
        command,
        url=url,
        environment=environment,
        log=logs / f"{name}.log",
        is_ready=lambda: is_ready(url, api_key=sglang.api_key),
        start_timeout_s=config.runtime.start_timeout_s,
    )
    connected = _connected(url, sglang, model_path, config.train.step_timeout_s, ref)
    async with server, connected as generator:
        yield generator


@asynccontextmanager
async def _connected(
    url: str, config: SglangConfig, model_path: str, update_timeout_s: float, ref: WeightRef | None
) -> AsyncGenerator[Generator, None]:
    async with SglangGenerator(url, config, model_path=model_path, update_timeout_s=update_timeout_s) as generator:
        await _bring_up_to_date(generator, ref)
        yield generator


async def _bring_up_to_date(generator: Generator, ref: WeightRef | None) -> None:
    if ref is not None:
        await generator.update_weights(ref, mode="retract")

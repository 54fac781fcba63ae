"""How each kind of generator is started: what the supervisor calls, at first and after a loss."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from actors.cluster import Cluster
from actors.config import Config
from actors.messages import StartGenerator
from actors.remote import RemoteGenerator
from actors.sglang_server import server_command, sglang_server
from engine.errors import GeneratorLostError
from engine.inference.embedded import EmbeddedGenerator
from engine.inference.sglang import SglangGenerator, is_ready
from engine.inference.sglang_config import SglangConfig
from engine.inference.supervised import Start
from engine.interfaces import Generator
from engine.ports import reserved_port
from engine.tokenizer import load_tokenizer


def generator_starts(config: Config, cluster: Cluster, *, model_path: str, logs: Path) -> list[tuple[str, Start]]:
    """A name and a start for each generator: connections to SGLang servers that are there, or actors of the cluster."""
    generator, runtime = config.generator, config.runtime
    update_timeout_s = config.train.step_timeout_s
    if isinstance(generator, SglangConfig) and config.has_urls:
        connect = partial(
            SglangGenerator,
            config=generator,
            model_path=model_path,
            update_timeout_s=update_timeout_s,
            answer_timeout_s=runtime.start_timeout_s,
        )
        return [(url, partial(connect, url)) for url in generator.urls]
    starts = [
        StartGenerator(
            name=f"generator-{number}",
            config=generator,
            model_path=model_path,
            logs=str(logs),
            threads=runtime.threads,
            start_timeout_s=runtime.start_timeout_s,
            update_timeout_s=update_timeout_s,
        )
        for number in range(runtime.num_generators)
    ]
    if isinstance(generator, SglangConfig) and runtime.backend == "local":
        # A server of this machine needs no actor between it and its client.
        return [(start.name, partial(generator_of, start)) for start in starts]
    return [(start.name, partial(_hosted, cluster, start)) for start in starts]


def generator_of(start: StartGenerator) -> AbstractAsyncContextManager[Generator]:
    """The generator itself: in this process, or in a server that this process starts."""
    config = start.config
    if isinstance(config, SglangConfig):
        return _launched(start, config)
    return EmbeddedGenerator(config, model_path=start.model_path, tokenizer=load_tokenizer(start.model_path))


@asynccontextmanager
async def _hosted(cluster: Cluster, start: StartGenerator) -> AsyncGenerator[Generator, None]:
    async with cluster.actor(start.name, start, kind=GeneratorLostError) as caller:
        yield RemoteGenerator(caller)


@asynccontextmanager
async def _launched(start: StartGenerator, config: SglangConfig) -> AsyncGenerator[SglangGenerator, None]:
    async with AsyncExitStack() as stack:
        # A server loads its model before it listens: time enough to lose a port that is only free.
        with reserved_port() as port:
            url = f"http://127.0.0.1:{port}"
            command, environment = await server_command(
                config, model_path=start.model_path, version=0, port=port, threads=start.threads
            )
            server = sglang_server(
                start.name,
                command,
                url=url,
                environment=environment,
                log=Path(start.logs) / f"{start.name}.log",
                is_ready=lambda: is_ready(url, api_key=config.api_key),
                start_timeout_s=start.start_timeout_s,
            )
            await stack.enter_async_context(server)
        client = SglangGenerator(url, config, model_path=start.model_path, update_timeout_s=start.update_timeout_s)
        yield await stack.enter_async_context(client)

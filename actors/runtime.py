"""LocalRuntime: one machine, no cluster; asyncio here, generators and learner ranks in processes of their own."""

import asyncio
import hashlib
import logging
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from actors.config import Config, HfModel
from actors.messages import StartGenerator, StartLearner
from actors.process import actor_process
from actors.remote import RemoteGenerator, RemoteTrainer
from actors.wire import Caller
from engine.cohort import Cohort
from engine.errors import GeneratorError, LearnerError
from engine.events import AnyTreeEvent
from engine.inference.router import Router
from engine.inference.shape import read_shape
from engine.renderer import Renderer, make_renderer
from engine.rollout import TreeRollout
from engine.rollout_config import RolloutConfig
from engine.tokenizer import load_tokenizer
from engine.tree import TreeBuilder
from engine.types import TrajectoryGroup
from learner.config import LearnerConfig
from tools.config import build_executor
from tools.executor import Executor
from tools.schema import Tool

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")


class LocalRuntime:
    """All parts of one run. `async with LocalRuntime(config, run_dir) as runtime`, then start what is needed.

    Leaving ends every process, also after an error, in the reverse order of their start. `config` must be materialised.
    """

    def __init__(
        self, config: Config, run_dir: Path, *, tools: Sequence[Tool] = (), reward: Tool | None = None
    ) -> None:
        """`tools` come beside the configured ones; `reward` replaces the configured one."""
        assert isinstance(config.model, HfModel), "materialise first"
        self.config = config
        self.model_path = config.model.path
        self.run_dir = run_dir
        self.tokenizer = load_tokenizer(self.model_path)
        self.vocab_size = read_shape(self.model_path).vocab_size
        self._executor = build_executor(config.tools, tools=tools, reward=reward)
        self.generators: list[RemoteGenerator] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        self.tools: Executor = await self._stack.enter_async_context(self._executor)
        self.renderer: Renderer = make_renderer(self.config.renderer, tokenizer=self.tokenizer, specs=self.tools.specs)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def start_generators(self, model_path: str) -> Router:
        """Start all generator processes side by side; requests go through the router."""
        start = StartGenerator(config=self.config.generator, model_path=model_path)
        names = [f"generator-{number}" for number in range(self.config.runtime.num_generators)]
        callers = await self._start_all([(name, start) for name in names], self._stack, kind=GeneratorError)
        self.generators = [RemoteGenerator(caller) for caller in callers]
        return Router(self.generators)

    async def start_trainer(self, model_path: str) -> RemoteTrainer:
        """Start the learner, for as long as this runtime lives."""
        return await self._stack.enter_async_context(self.learner(config=self.config.learner, model_path=model_path))

    @asynccontextmanager
    async def learner(
        self, *, config: LearnerConfig, model_path: str, name: str = "learner"
    ) -> AsyncGenerator[RemoteTrainer, None]:
        """The ranks of a learner, for the length of the block; they meet at a port on loopback."""
        address = f"tcp://127.0.0.1:{_free_port()}" if config.world_size > 1 else None
        async with AsyncExitStack() as stack:
            weights_dir = self._weights_dir(name, stack)
            starts = [
                (
                    f"{name}-{rank}",
                    StartLearner(
                        config=config,
                        model_path=model_path,
                        weights_dir=str(weights_dir),
                        rank=rank,
                        world_size=config.world_size,
                        init_method=address,
                    ),
                )
                for rank in range(config.world_size)
            ]
            yield RemoteTrainer(await self._start_all(starts, stack, kind=LearnerError))

    def rollouts(
        self, router: Router, *, config: RolloutConfig, seed: int, emit: Callable[[AnyTreeEvent], None]
    ) -> Callable[[TreeBuilder, Cohort], Awaitable[TrajectoryGroup]]:
        """A function that grows a tree under `config`, with this runtime's policy, tools and renderer."""

        async def grow(tree: TreeBuilder, cohort: Cohort) -> TrajectoryGroup:
            rollout = TreeRollout(
                tree,
                config=config,
                seed=seed,
                cohort=cohort,
                generator=router,
                tools=self.tools,
                renderer=self.renderer,
                vocab_size=self.vocab_size,
                emit=emit,
            )
            try:
                return await rollout.run()
            finally:
                router.forget(tree.prompt.prompt_id)

        return grow

    async def _start_all(
        self,
        starts: Sequence[tuple[str, StartGenerator | StartLearner]],
        stack: AsyncExitStack,
        *,
        kind: type[GeneratorError] | type[LearnerError],
    ) -> list[Caller]:
        runtime = self.config.runtime
        contexts = [
            actor_process(
                name,
                start,
                kind=kind,
                log=self.run_dir / "logs" / f"{name}.log",
                threads=runtime.threads,
                start_timeout_s=runtime.start_timeout_s,
            )
            for name, start in starts
        ]
        # Entered side by side: ranks of one learner wait for each other before any of them answers.
        entered = await asyncio.gather(*(context.__aenter__() for context in contexts), return_exceptions=True)
        for context, caller in zip(contexts, entered, strict=True):
            if not isinstance(caller, BaseException):
                stack.push_async_exit(context)
        for caller in entered:
            if isinstance(caller, BaseException):
                raise caller
        return [caller for caller in entered if isinstance(caller, Caller)]

    def _weights_dir(self, name: str, stack: AsyncExitStack) -> Path:
        """A folder in shared memory where there is one; one for each run, so that a killed run leaves nothing twice."""
        digest = hashlib.blake2b(f"{self.run_dir.resolve()}/{name}".encode(), digest_size=6).hexdigest()
        base = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
        folder = base / f"arpo-{digest}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

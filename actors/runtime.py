"""LocalRuntime: all parts of one run; asyncio here, generators, learner ranks, rollout and tool actors on a cluster."""

import hashlib
import logging
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from actors.agent_rollout import AGENT_TIMEOUT_S, AgentRollout
from actors.cluster import Cluster, LocalCluster
from actors.config import Config, HfModel, RuntimeConfig
from actors.doctor.sizes import published_bytes
from actors.entering import enter_all
from actors.gateway.dialogue import Dialogue
from actors.generators import generator_starts
from actors.messages import StartLearner, StartRollouts, StartTools
from actors.policy import Agent
from actors.remote import RemoteTrainer
from actors.rollout_pool import RolloutPool, check_distributable
from actors.wire import Caller
from engine.cohort import Cohort
from engine.dataset import DataConfig, PromptDataset
from engine.errors import ActorLostError, ConfigError, LearnerError
from engine.events import AnyTreeEvent
from engine.inference.loading import check_weights
from engine.inference.router import Router
from engine.inference.shape import parameter_shapes, read_shape
from engine.inference.supervised import SupervisedGenerator, watched
from engine.lives import Lives
from engine.renderer import Renderer, make_renderer
from engine.rollout import TreeRollout
from engine.rollout_config import RolloutConfig
from engine.tokenizer import load_tokenizer
from engine.tree import TreeBuilder
from engine.types import TrajectoryGroup
from learner.config import LearnerConfig
from learner.layout import check_layout
from tools.config import build_executor
from tools.executor import Executor
from tools.schema import Tool

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
KEPT_WEIGHTS = 3
"""Versions that must fit: two published ones, and the next one while it is written."""


class LocalRuntime:
    """All parts of one run. `async with LocalRuntime(config, run_dir) as runtime`, then start what is needed.

    Leaving ends every process, also after an error, in the reverse order of their start. `config` must be materialised.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        *,
        tools: Sequence[Tool] = (),
        reward: Tool | None = None,
        agent: Agent | None = None,
        agent_timeout_s: float = AGENT_TIMEOUT_S,
    ) -> None:
        """`tools` come beside the configured ones; `reward` replaces the configured one; an `agent` grows the trees,
        and branches them itself. These are functions of this process, so trees grow here where there is one.

        Raises `DataError` or `ConfigError` for a model or a corpus that cannot be used; nothing has started by then.
        """
        assert isinstance(config.model, HfModel), "materialise first"
        self.config = config
        self.model_path = config.model.path
        self.run_dir = run_dir
        self.tokenizer = load_tokenizer(self.model_path)
        shape = self._shape = read_shape(self.model_path)
        check_weights(self.model_path, parameter_shapes(shape))
        for number, stage in enumerate(config.sft):
            check_layout(shape, stage.learner, section=f"sft.{number}.learner")
        check_layout(shape, config.learner)
        self.vocab_size = shape.vocab_size
        self.max_length = min(shape.max_positions, config.generator.max_kv_tokens or shape.max_positions)
        self._executor = build_executor(config.tools, tools=tools, reward=reward)
        self._agent = agent
        self._agent_timeout_s = agent_timeout_s
        self._has_functions = bool(tools) or reward is not None or agent is not None
        self._cluster = make_cluster(config.runtime, run_dir)
        self._pool: RolloutPool | None = None
        self._num_scopes = 0
        self.generators: list[SupervisedGenerator] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.tools: Executor = await stack.enter_async_context(self._executor)
            self.renderer: Renderer = make_renderer(
                self.config.renderer, tokenizer=self.tokenizer, specs=self.tools.specs
            )
            await stack.enter_async_context(self._cluster)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every process; done again, it does nothing."""
        await self._stack.aclose()

    def prompts(self, config: DataConfig) -> PromptDataset:
        """The questions of a file, every one of them short enough to be asked and answered.

        Raises `DataError` or `ConfigError` where one is not.
        """
        dataset = PromptDataset(config, renderer=self.renderer)
        longest, response = dataset.longest(), self.config.rollout.sampling.max_response_tokens
        if longest + response > self.max_length:
            raise ConfigError(
                f"{config.path}: a prompt of {longest} tokens and a response of {response} do not fit into "
                f"{self.max_length} (the smaller of generator.max_kv_tokens and the model's positions) "
                "- at $.rollout.sampling.max_response_tokens"
            )
        return dataset

    async def start_generators(self, model_path: str) -> Router:
        """Start all generators side by side; each comes back when it is lost. Requests go through the router."""
        starts = generator_starts(self.config, self._cluster, model_path=model_path, logs=self.run_dir / "logs")
        await self._cluster.reserve("generator", 0 if self.config.has_urls else len(starts))
        # Whoever starts servers by other means starts them again, in his own time.
        limit = sys.maxsize if self.config.has_urls else self.config.runtime.restart_limit
        self.generators = [SupervisedGenerator(name, start, restart_limit=limit) for name, start in starts]
        await enter_all([(one.name, one) for one in self.generators], self._stack)
        await self._start_pool(model_path, [one.name for one in self.generators])
        return Router(self.generators)

    async def _start_pool(self, model_path: str, generators: Sequence[str]) -> None:
        """Rollout actors and tool workers, where the configuration has some."""
        num_rollouts, num_workers = self._cluster.num_rollout_actors, self._cluster.num_tool_workers
        if not num_rollouts or self._has_functions:
            return
        await self._cluster.reserve("tools", num_workers)
        await self._cluster.reserve("rollout", num_rollouts)
        workers = [f"tools-{number}" for number in range(num_workers)]
        start_tools = StartTools(config=self.config.tools)
        start_rollouts = StartRollouts(
            model_path=model_path,
            renderer=self.config.renderer,
            tools=self.config.tools,
            generators=tuple(generators),
            tool_workers=tuple(workers),
        )
        await enter_all([(name, self._lives(name, start_tools)) for name in workers], self._stack)
        actors = [self._lives(f"rollout-{number}", start_rollouts) for number in range(num_rollouts)]
        await enter_all([(actor.name, actor) for actor in actors], self._stack)
        # Rollout actors ask generators themselves.
        await self._stack.enter_async_context(watched(self.generators))
        self._pool = RolloutPool(actors)

    def _lives(self, name: str, start: StartTools | StartRollouts) -> Lives[Caller]:
        limit = self.config.runtime.restart_limit
        return Lives(name, lambda: self._cluster.actor(name, start, kind=ActorLostError), limit=limit)

    async def start_trainer(self, model_path: str) -> RemoteTrainer:
        """Start the learner, for as long as this runtime lives."""
        return await self._stack.enter_async_context(self.learner(config=self.config.learner, model_path=model_path))

    @asynccontextmanager
    async def learner(
        self, *, config: LearnerConfig, model_path: str, name: str = "learner"
    ) -> AsyncGenerator[RemoteTrainer, None]:
        """The ranks of a learner, for the length of the block; they meet at a port on loopback."""
        async with AsyncExitStack() as stack:
            weights_dir = self._weights_dir(name, published_bytes(self._shape, config), stack)
            await self._cluster.reserve("learner", config.world_size)
            address = await self._cluster.meeting_point() if config.world_size > 1 else None
            starts = [
                StartLearner(
                    config=config,
                    model_path=model_path,
                    weights_dir=str(weights_dir),
                    rank=rank,
                    world_size=config.world_size,
                    init_method=address,
                )
                for rank in range(config.world_size)
            ]
            names = [f"{name}-{rank}" for rank in range(config.world_size)]
            ranks = [
                (rank, self._cluster.actor(rank, start, kind=LearnerError))
                for rank, start in zip(names, starts, strict=True)
            ]
            yield RemoteTrainer(await enter_all(ranks, stack))

    def rollouts(
        self, router: Router, *, config: RolloutConfig, seed: int, emit: Callable[[AnyTreeEvent], None]
    ) -> Callable[[TreeBuilder, Cohort], Awaitable[TrajectoryGroup]]:
        """A function that grows a tree under `config`, with this runtime's policy, tools and renderer: on a rollout
        actor where there are some, and here otherwise."""
        if self._pool is not None:
            return self._rollouts_elsewhere(self._pool, config=config, seed=seed, emit=emit)

        async def grow(tree: TreeBuilder, cohort: Cohort) -> TrajectoryGroup:
            try:
                if self._agent is not None:
                    return await self._agent_rollout(
                        tree, cohort, self._agent, router=router, config=config, seed=seed, emit=emit
                    ).run()
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
                return await rollout.run()
            finally:
                router.forget(tree.prompt.prompt_id)

        return grow

    def _agent_rollout(
        self,
        tree: TreeBuilder,
        cohort: Cohort,
        agent: Agent,
        *,
        router: Router,
        config: RolloutConfig,
        seed: int,
        emit: Callable[[AnyTreeEvent], None],
    ) -> AgentRollout:
        return AgentRollout(
            tree,
            agent=agent,
            config=config,
            seed=seed,
            cohort=cohort,
            generator=router,
            tools=self.tools,
            dialogue=Dialogue(self.tokenizer, self.config.renderer, self.tools.specs),
            emit=emit,
            timeout_s=self._agent_timeout_s,
        )

    def _rollouts_elsewhere(
        self, pool: RolloutPool, *, config: RolloutConfig, seed: int, emit: Callable[[AnyTreeEvent], None]
    ) -> Callable[[TreeBuilder, Cohort], Awaitable[TrajectoryGroup]]:
        is_deterministic = self.config.train.deterministic
        check_distributable(config, is_deterministic=is_deterministic, num_actors=self._cluster.num_rollout_actors)
        self._num_scopes += 1
        scope = str(self._num_scopes)

        async def grow(tree: TreeBuilder, cohort: Cohort) -> TrajectoryGroup:
            return await pool.grow(tree, cohort, config=config, seed=seed, scope=scope, emit=emit)

        return grow

    def _weights_dir(self, name: str, num_bytes: int, stack: AsyncExitStack) -> Path:
        """A folder for weights of so many bytes a version, in shared memory where there is room; one a run, so that a
        killed run leaves nothing twice."""
        digest = hashlib.blake2b(f"{self.run_dir.resolve()}/{name}".encode(), digest_size=6).hexdigest()
        chosen = self.config.runtime.weights_dir
        folder = (Path(chosen) if chosen else base_for_weights(num_bytes)) / f"arpo-{digest}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder


def base_for_weights(num_bytes: int) -> Path:
    """Shared memory, where it holds the published versions, of so many bytes each; containers often have 64 MiB."""
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > KEPT_WEIGHTS * num_bytes:
        return SHARED_MEMORY
    base = Path(tempfile.gettempdir())
    logger.warning("%s has no room for %d bytes of weights; they go through %s", SHARED_MEMORY, num_bytes, base)
    return base


def make_cluster(config: RuntimeConfig, run_dir: Path) -> Cluster:
    """The cluster that a configuration asks for; nothing has started by then."""
    if config.backend == "ray":
        from actors.ray_cluster import RayCluster  # the door of ray

        return RayCluster(config, run_dir=run_dir)
    return LocalCluster(logs=run_dir / "logs", threads=config.threads, start_timeout_s=config.start_timeout_s)

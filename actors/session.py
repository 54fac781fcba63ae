"""Session: the engine as a library; your questions, tools, reward and agent, and the policy that learns from them."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

from actors.agent_rollout import AGENT_TIMEOUT_S
from actors.config import Config
from actors.evaluate import grow_all
from actors.materials import materialise
from actors.one_segment import one_segment
from actors.policy import Agent, Segment
from actors.remote import RemoteTrainer
from actors.run_dir import RunDir, check_same
from actors.run_log import RunLog
from actors.runtime import LocalRuntime
from actors.sft import starting_model
from actors.train import Inputs, Training, recorded
from actors.watcher import Watcher
from engine.errors import cause
from engine.metrics import StepMetrics
from engine.types import Prompt, Trajectory, TrajectoryGroup
from tools.schema import Tool

CONCURRENCY = 16
"""Prompts in flight, of each call of `rollouts`."""

T = TypeVar("T")


class Session:
    """`async with Session(config, tools=[...]) as session`; several may live in one process, and share nothing.

    Entering makes the model, where that is to be made, and starts the generators; leaving ends every process, task and
    piece of shared memory that it or its streams started, also after an error or a cancellation, and also of streams
    that nobody closed. Errors of input are `ConfigError` or `DataError`, raised before anything starts.
    """

    def __init__(
        self,
        config: Config,
        *,
        tools: Sequence[Tool] = (),
        reward: Tool | None = None,
        agent: Agent | None = None,
        agent_timeout_s: float = AGENT_TIMEOUT_S,
        folder: str | Path | None = None,
    ) -> None:
        """`tools` come beside the configured ones; `reward` replaces the configured one.

        A reward is an invisible tool of that name: it receives `text`, `ground_truth` and `tools_run`, and returns an
        `engine.Reward`. An `agent` is an async function `(policy, prompt)`, run once a trajectory; what it returns is
        its score (see `policy.Agent`). Without one the engine drives the policy, and branches where it is uncertain.

        `folder` keeps what `steps` does, as `arpo train` does in `runs/NAME`, and a run that lies there goes on; unset
        is a temporary folder, which goes with the session.
        """
        self._given = config
        self._config = materialise(config)
        self._tools = tools
        self._reward = reward
        self._agent = agent
        self._agent_timeout_s = agent_timeout_s
        self._folder = None if folder is None else Path(folder)
        self._stack = AsyncExitStack()
        self._learner = AsyncExitStack()
        """Of the last `steps`: it stays, since a generator that is started again needs its weights."""
        self._trainer: RemoteTrainer | None = None
        self._is_training = False
        self._streams: set[asyncio.Task[None]] = set()
        self._num_prompts = 0
        """Named so far: two lists of prompts in flight never share a name."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._folder is None:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="arpo-session-"))
                self._run = RunDir(Path(scratch))
            else:
                self._run = RunDir(self._folder)
                check_same(self._run, self._given)
            runtime = LocalRuntime(
                self._config,
                self._run.path,
                tools=self._tools,
                reward=self._reward,
                agent=self._agent,
                agent_timeout_s=self._agent_timeout_s,
            )
            self._runtime = await stack.enter_async_context(runtime)
            stack.enter_context(self._run.locked())
            self._model_path = await starting_model(self._config, runtime, emit=lambda event: None)
            self._router = await runtime.start_generators(self._model_path)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            for task in self._streams:
                if not task.cancelling():
                    task.cancel()
            await asyncio.gather(*self._streams, return_exceptions=True)
        finally:
            self._trainer = None
            try:
                await self._learner.aclose()
            finally:
                await self._stack.aclose()

    @property
    def folder(self) -> Path:
        """Where `steps` keeps its journal, checkpoints and metrics, and every process its log."""
        return self._run.path

    def prompts(self, questions: Iterable[str], *, ground_truths: Iterable[str] = ()) -> list[Prompt]:
        """Questions as prompts, under the configured system prompt; `ground_truths` are for the reward."""
        truths = list(ground_truths)
        prompts: list[Prompt] = []
        for place, question in enumerate(questions):
            row, self._num_prompts = self._num_prompts, self._num_prompts + 1
            prompts.append(
                Prompt(
                    prompt_id=f"session-r{row}",
                    epoch=0,
                    row=row,
                    token_ids=self._runtime.renderer.render_prompt(self._asked(question)),
                    question=question,
                    ground_truth=truths[place] if place < len(truths) else "",
                )
            )
        return prompts

    async def generate(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: Sequence[str] = (),
    ) -> Segment:
        """One answer of the policy as it is now: a question under the configured system prompt, or whole `messages`.

        It ends where the policy ends its turn or calls a tool, which nobody runs; unset bounds are those of
        `[rollout.sampling]`. Raises `GeneratorError` where nobody answers. Cancelling ends the request.
        """
        asked = self._asked(messages) if isinstance(messages, str) else [dict(message) for message in messages]
        self._num_prompts += 1
        return await one_segment(
            asked,
            name=f"session-g{self._num_prompts}",
            runtime=self._runtime,
            router=self._router,
            max_tokens=max_tokens,
            temperature=temperature,
            stop=stop,
        )

    async def rollouts(self, prompts: Iterable[Prompt]) -> AsyncGenerator[TrajectoryGroup, None]:
        """Grow a tree for each prompt; groups come as they finish.

        Closing the stream early, or cancelling whoever reads it, ends what runs. Leaving a loop by `break` closes it
        only when it is garbage, or the session ends: `contextlib.aclosing` says when.
        """
        config, seed = self._config.rollout, self._config.run.seed
        grow = self._runtime.rollouts(self._router, config=config, seed=seed, emit=lambda event: None)

        async def growing(put: Callable[[TrajectoryGroup], None]) -> None:
            await grow_all(prompts, grow, config=config, concurrency=CONCURRENCY, on_group=put)

        async with self._streamed("session rollouts", growing) as groups:
            while (group := await groups()) is not None:
                yield group

    async def steps(self) -> AsyncGenerator[StepMetrics, None]:
        """Train as `arpo train` does, on `config.data` and to `config.train.steps`: a row of metrics for each step.

        Training does not wait for whoever reads; `rollouts` and `generate` may be used meanwhile, and behind it they
        have the trained weights. Closing the stream early, or cancelling, ends training, and a later call goes on
        where it was, as a resumed run does: with a learner of its own, from the last checkpoint and the journal. Only
        steps that are new are given. Raises `RuntimeError` where steps are under way already.
        """
        if self._is_training:
            raise RuntimeError("steps are under way already: close that stream first, as contextlib.aclosing does")
        self._is_training = True
        try:
            async with self._streamed("session steps", self._train) as rows:
                while (row := await rows()) is not None:
                    yield row
        finally:
            self._is_training = False

    async def export_hf(self, path: str | Path) -> None:
        """Write what `steps` came to as a Hugging Face folder. Raises `RuntimeError` before there were any."""
        if self._trainer is None:
            raise RuntimeError("nothing has been trained yet")
        await self._trainer.export_hf(str(path))

    def text(self, group: TrajectoryGroup, trajectory: Trajectory) -> str:
        """The response of a trajectory, tool results included."""
        tokens = group.tree.token_ids(trajectory.leaf)[group.prompt.token_ids.size :]
        return self._runtime.renderer.text(tokens)

    def _asked(self, question: str) -> list[dict[str, str]]:
        system = self._config.data.system_prompt
        messages = [{"role": "system", "content": system}] if system else []
        return [*messages, {"role": "user", "content": question}]

    async def _train(self, put: Callable[[StepMetrics], None]) -> None:
        inputs = Inputs(self._runtime)
        self._trainer = None
        await self._learner.aclose()
        learner = self._runtime.learner(config=self._config.learner, model_path=self._model_path)
        self._trainer = trainer = await self._learner.enter_async_context(learner)
        watcher = _Rows(put)

        async def work(log: RunLog) -> None:
            training = Training(self._config, self._run, log, watcher=watcher)
            await training.learn(self._runtime, inputs, self._router, trainer, model_path=self._model_path)

        await recorded(self._given, self._run, work, watcher=watcher)

    @asynccontextmanager
    async def _streamed(
        self, name: str, work: Callable[[Callable[[T], None]], Coroutine[None, None, None]]
    ) -> AsyncGenerator[Callable[[], Coroutine[None, None, T | None]], None]:
        """Do `work` in a task for the length of the block; the value waits for what it puts, None at its end.

        Not bounded: what nobody takes weighs no more than it did while it was made.
        """
        queue: asyncio.Queue[T | None] = asyncio.Queue()

        async def working() -> None:
            try:
                await work(queue.put_nowait)
            finally:
                queue.put_nowait(None)

        task = asyncio.create_task(working(), name=name)
        self._streams.add(task)

        async def take() -> T | None:
            if (value := await queue.get()) is None:
                await asyncio.wait([task])
                if task.cancelled():
                    raise RuntimeError("the session has ended")
                if (error := task.exception()) is not None:
                    raise cause(error) from error
            return value

        try:
            yield take
        finally:
            if not task.cancelling():  # a second time would land in the cleaning up behind the first
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._streams.discard(task)


class _Rows(Watcher):
    """Passes on the rows of the steps."""

    def __init__(self, put: Callable[[StepMetrics], None]) -> None:
        self._put = put

    def step(self, row: StepMetrics) -> None:
        self._put(row)

"""Schedules: the whole control plane with everything that may go wrong, drawn from one seed, under the virtual clock.

Servers vanish and come back, requests fail, stall and are refused, tools are slow, fail and time out, weights change
inside branches, the learner fails, and the process is killed and started again from its events. `play(seed)` says what
the run came to, and which invariants it broke.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.branching import AnyBranching, Arpo, Chain, TreeGrpo, Uniform
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.coins import coin, seed_of
from engine.controller import Controller
from engine.errors import ArpoError, GeneratorLostError, cause
from engine.events import AnyEvent
from engine.faults import FaultyGenerator, ScriptedTrainer
from engine.granting import Paper, Ranked
from engine.inference.router import Router
from engine.inference.scripted import ScriptedGenerator
from engine.inference.supervised import SupervisedGenerator
from engine.rollout import TreeRollout
from engine.rollout_config import BudgetConfig, RolloutConfig, SamplingConfig
from engine.tokenizer import HfTokenizer
from engine.train_config import TrainConfig
from engine.tree import TreeBuilder
from engine.turnstile import FIRST_COME, Precedence
from engine.types import GenerateRequest, Sample, ToolCall, ToolResult, TrajectoryGroup
from tests.control_world import World
from tests.invariants import broken

NUM_PROMPTS = 4
LIVES = 4
"""The last one is not killed, and its learner works."""
NOTHING = "nothing can ever happen again"


@dataclass
class Outcome:
    """What a schedule came to."""

    seed: int
    ends: list[str] = field(default_factory=list[str])
    """Of each life: `finished`, `killed`, or the type of the error."""
    violations: list[str] = field(default_factory=list[str])
    num_trained: int = 0
    num_refused: int = 0


class Dice:
    """Everything a schedule decides."""

    def __init__(self, *names: str | int) -> None:
        self._names = names

    def coin(self, *names: str | int) -> float:
        return coin(0, *self._names, *names)

    def pick(self, name: str, *choices: Any) -> Any:
        return choices[seed_of(0, *self._names, name) % len(choices)]


class SlowTools:
    """Tools of a schedule: quick, slow, failing, or out of time; the n-th call of each has its own fate."""

    def __init__(self, world: World, dice: Dice) -> None:
        self._inner = world.tools
        self._dice = dice
        self.specs = world.tools.specs
        self.num_running = 0

    async def call(
        self, call: ToolCall, *, history: Sequence[ToolCall] = (), precedence: Precedence = FIRST_COME
    ) -> ToolResult:
        number = len(self._inner.calls)
        fate = self._dice.coin("tool", number)
        self.num_running += 1
        try:
            result = await self._inner.call(call, history=history)
            if call.name != "reward":
                await asyncio.sleep(30.0 if fate < 0.05 else fate)
        finally:
            self.num_running -= 1
        if fate < 0.05:
            return ToolResult(name=call.name, text="out of time", status="timeout")
        return ToolResult(name=call.name, text="it broke", status="error") if fate < 0.12 else result


class Scheduled(World):
    """One life of a run under one schedule."""

    def __init__(self, tokenizer: HfTokenizer, dice: Dice, life: int, events: list[AnyEvent], saved: Any) -> None:
        fails_at = dice.pick("fails_at", 1, 2, None, None, None, None) if life == 0 else None
        trainer = ScriptedTrainer(
            step_s=dice.pick("step_s", 0.01, 0.4, 2.0), publish_s=dice.pick("publish_s", 0.0, 0.3), fails_at=fails_at
        )
        trainer.saved = saved
        is_deterministic = dice.coin("deterministic") < 0.3
        super().__init__(
            tokenizer,
            train=TrainConfig(
                batch_size=2,
                max_staleness=dice.pick("max_staleness", 0, 1, 2),
                update_mode=dice.pick("mode", "retract", "in_place", "drain"),
                checkpoint_every=dice.pick("every", 1, 2),
                deterministic=is_deterministic,
            ),
            rollout=rollout_of(dice, is_deterministic=is_deterministic),
            num_prompts=NUM_PROMPTS,
            token_s=dice.pick("token_s", 0.0, 0.02, 0.2),
            latency_s=0.0,
            refuses=lambda name: dice.coin("refuse", name) < 0.15,
            trainer=trainer,
            events=events,
        )
        self.dice = Dice("life", life, *dice._names)
        self.slow = SlowTools(self, self.dice)
        self.scripted: list[ScriptedGenerator] = []
        self.controller: Controller | None = None

    async def main(self) -> None:
        async with AsyncExitStack() as stack:
            names = [f"generator-{number}" for number in range(2)]
            supervised = [SupervisedGenerator(n, lambda n=n: self._server(n), restart_limit=1000) for n in names]
            self.generators = [await stack.enter_async_context(one) for one in supervised]
            self.router = Router(self.generators, patience_s=100.0)
            self.controller = Controller(
                config=self.train,
                rollout_config=self.rollout_config,
                state=self.state,
                prompts=self.rows,
                rollout=self.grow,
                credit=self.credit,
                generators=self.generators,
                trainer=self.trainer,
                checkpoint_path=lambda step: f"checkpoint-{step}",
                emit=self.emit,
            )
            await self.controller.run()

    @asynccontextmanager
    async def _server(self, name: str) -> AsyncGenerator[FaultyGenerator, None]:
        """Each start has its own end; the first one works, or the run would not begin."""
        start = len(self.scripted)
        if start >= 2 and self.dice.coin("no start", start) < 0.3:
            self.scripted.append(ScriptedGenerator(self.script))
            raise GeneratorLostError(f"{name} does not start")
        inner = ScriptedGenerator(self.script)
        self.scripted.append(inner)
        server = FaultyGenerator(inner, self._plan)
        vanishing = asyncio.create_task(self._vanish(server, start), name=f"end of {name}")
        try:
            yield server
        finally:
            vanishing.cancel()
            await asyncio.gather(vanishing, return_exceptions=True)

    async def _vanish(self, server: FaultyGenerator, start: int) -> None:
        if self.dice.coin("vanishes", start) < 0.4:
            await asyncio.sleep(5.0 * self.dice.coin("vanishes when", start))
            server.is_lost = True

    def _plan(self, request: GenerateRequest) -> str:
        fate = self.dice.coin("request", request.request_id)
        return next((what for limit, what in ((0.01, "stall"), (0.03, "refuse"), (0.1, "fail")) if fate < limit), "")

    async def grow(self, tree: TreeBuilder, cohort: Cohort) -> TrajectoryGroup:
        rollout = TreeRollout(
            tree,
            config=self.rollout_config,
            seed=self.seed,
            cohort=cohort,
            generator=self.router,
            tools=self.slow,
            renderer=self.renderer,
            vocab_size=self.vocab_size,
            emit=self.emit,
        )
        try:
            return await rollout.run()
        finally:
            self.router.forget(tree.prompt.prompt_id)

    def credit(self, group: TrajectoryGroup) -> Sample | None:
        is_worth_it = any(trajectory.status != "failed" for trajectory in group.trajectories)
        return super().credit(group) if is_worth_it else None

    @property
    def left_running(self) -> list[str]:
        """What goes on though the run has ended."""
        found = [f"{len(g._running)} requests of a generator" for g in self.scripted if g._running]
        return [*found, f"{self.slow.num_running} tool calls"] if self.slow.num_running else found


def rollout_of(dice: Dice, *, is_deterministic: bool) -> RolloutConfig:
    branching: AnyBranching = dice.pick(
        "branching",
        Arpo(initial=2, probe_tokens=3),
        Arpo(initial=1, probe_tokens=2, fork_at="tool_result"),
        Uniform(initial=2, probe_tokens=2),
        TreeGrpo(initial=2),
        Chain(),
    )
    granting = dice.pick("granting", Paper(), Ranked(window=2))
    is_ranked = isinstance(granting, Ranked)
    budget = BudgetConfig(
        calls_per_path=dice.pick("calls_per_path", 1, 3),
        calls_per_prompt=None if is_deterministic else dice.pick("calls_per_prompt", 4, None),
        calls_per_cohort=None if is_deterministic else dice.pick("calls_per_cohort", 7, None),
        calls_per_run=None if is_deterministic else dice.pick("calls_per_run", 12, None),
        leaves_per_cohort=dice.pick("leaves", 5, None) if is_ranked or not is_deterministic else None,
    )
    sampling = SamplingConfig(max_turns=3, chunk_timeout_s=20.0, max_retries=2)
    return RolloutConfig(
        size=3, branching=branching, granting=granting, budget=budget, stream_interval=6, sampling=sampling
    )


def play(seed: int, tokenizer: HfTokenizer) -> Outcome:
    """One schedule to its end."""
    outcome, dice = Outcome(seed), Dice(seed)
    events: list[AnyEvent] = []
    saved: dict[str, int] = {}
    for life in range(LIVES):
        world = Scheduled(tokenizer, dice, life, events, saved)
        is_killed = life < LIVES - 1 and dice.coin("killed", life) < 0.5
        end = _live(world, 6.0 * dice.coin("when", life) if is_killed else None, outcome)
        outcome.ends.append(end)
        outcome.violations += broken(world, is_finished=end == "finished")
        events = world.events
        if end == "finished":
            break
    outcome.num_trained = len(set(world.trained))
    outcome.num_refused = world.state.num_refused
    return outcome


def _live(world: Scheduled, kill_s: float | None, outcome: Outcome) -> str:
    """How a life ended."""
    killed_at = 0.0

    async def until() -> None:
        nonlocal killed_at
        try:
            async with asyncio.timeout(kill_s):
                await world.main()
        finally:
            killed_at = asyncio.get_running_loop().time()

    try:
        run_virtual(until())
    except TimeoutError:
        assert kill_s is not None
        if killed_at > kill_s + 1.0:
            outcome.violations.append(f"cancelled at {kill_s:.2f} s, and ended at {killed_at:.2f} s")
        end = "killed"
    except (ArpoError, BaseExceptionGroup) as error:
        first = cause(error)
        if not isinstance(first, ArpoError) or NOTHING in str(first):
            outcome.violations.append(f"{type(first).__name__}: {first}")
        end = type(first).__name__
    else:
        end = "finished"
    if world.left_running:
        outcome.violations.append(f"left running: {', '.join(world.left_running)}")
    return end


def play_many(seeds: Sequence[int], folder: str) -> tuple[Counter[str], list[Outcome]]:
    """Many schedules: how their lives ended, and those outcomes that broke something."""
    from engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ends: Counter[str] = Counter()
    bad: list[Outcome] = []
    logging.disable(logging.CRITICAL)
    try:
        for seed in seeds:
            outcome = play(seed, tokenizer)
            ends.update(outcome.ends)
            if outcome.violations:
                bad.append(outcome)
    finally:
        logging.disable(logging.NOTSET)
    return ends, bad


__all__ = ["Outcome", "play", "play_many"]

"""RolloutPool: the controller's side of its rollout actors.

Trees go to the actor with the fewest. Where trees of a cohort share something (a budget, an order of grants), all of a
cohort's go to one. An actor that is lost is started again; its trees are grown on by another one from their events.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Generator, Sequence

from actors.messages import Grow, Grown
from actors.wire import Caller
from engine.cohort import Cohort
from engine.errors import ActorLostError, ConfigError, StalledError
from engine.events import AnyTreeEvent, Forked, ForkRanked, PathStarted, ToolFinished
from engine.granting import Ranked
from engine.lives import Lives
from engine.rollout_config import RolloutConfig
from engine.run_state import CohortUse
from engine.tree import TreeBuilder
from engine.types import TrajectoryGroup

logger = logging.getLogger(__name__)

_Scoped = tuple[str, int]
"""A cohort: its scope and its number."""
PATIENCE_S = 600.0
"""How long a tree waits while no actor is up at all."""


class RolloutPool:
    """Grows trees on rollout actors."""

    def __init__(self, actors: Sequence[Lives[Caller]]) -> None:
        self._actors = actors
        self._num_trees = dict.fromkeys(range(len(actors)), 0)
        self._homes: dict[_Scoped, int] = {}
        """Of cohorts that must be together, while one of their trees grows."""
        self._num_growing: Counter[_Scoped] = Counter()

    @property
    def num_homes(self) -> int:
        """Cohorts that are kept together now."""
        return len(self._homes)

    async def grow(
        self,
        tree: TreeBuilder,
        cohort: Cohort,
        *,
        config: RolloutConfig,
        seed: int,
        scope: str,
        emit: Callable[[AnyTreeEvent], None],
    ) -> TrajectoryGroup:
        """As `TreeRollout.run`, elsewhere. Raises `StalledError` where no actor has been up for `PATIENCE_S`."""
        started = asyncio.get_running_loop().time()
        with self._growing((scope, cohort.number)):
            await self._grow(tree, cohort, config=config, seed=seed, scope=scope, emit=emit)
        return tree.group(wall_s=asyncio.get_running_loop().time() - started)

    @contextlib.contextmanager
    def _growing(self, cohort: _Scoped) -> Generator[None, None, None]:
        self._num_growing[cohort] += 1
        try:
            yield
        finally:
            self._num_growing[cohort] -= 1
            if not self._num_growing[cohort]:
                # Whatever is still to come of the cohort may live anywhere: what was used goes along with each tree.
                del self._num_growing[cohort]
                self._homes.pop(cohort, None)

    async def _grow(
        self,
        tree: TreeBuilder,
        cohort: Cohort,
        *,
        config: RolloutConfig,
        seed: int,
        scope: str,
        emit: Callable[[AnyTreeEvent], None],
    ) -> None:
        while not tree.is_finished:
            number, caller = await self._actor(scope, cohort, config)
            self._num_trees[number] += 1
            try:
                grow = Grow(
                    prompt=tree.prompt,
                    events=tuple(tree.events),
                    config=config,
                    seed=seed,
                    scope=scope,
                    cohort=cohort.number,
                    use=CohortUse(
                        num_leaves=cohort.leaves.spent,
                        num_calls=cohort.tool_calls.spent,
                        num_ranked=cohort.num_ranked,
                    ),
                    is_logical=cohort.is_logical,
                )
                async with contextlib.aclosing(caller.stream(grow, ActorLostError)) as answers:
                    async for answer in answers:
                        assert isinstance(answer, Grown)
                        self._actors[number].serve()
                        for event in answer.events:
                            tree.apply(event)
                            _record(event, cohort)
                            emit(event)
            except ActorLostError as error:
                self._actors[number].lose(caller, error)
                logger.warning("%s is grown on elsewhere: %s", tree.prompt.prompt_id, error)
            finally:
                self._num_trees[number] -= 1

    async def _actor(self, scope: str, cohort: Cohort, config: RolloutConfig) -> tuple[int, Caller]:
        """An actor that is up: the cohort's, or the one with the fewest trees."""
        await self._until_one_is_up()
        up = {n: actor.current for n, actor in enumerate(self._actors) if actor.current is not None}
        number = min(up, key=lambda n: (self._num_trees[n], n))
        if must_be_together(config):
            home = (scope, cohort.number)
            if self._homes.get(home) not in up:
                self._homes[home] = number
            number = self._homes[home]
        return number, up[number]

    async def _until_one_is_up(self) -> None:
        waits = [asyncio.create_task(actor.until_up(), name=f"wait for {actor.name}") for actor in self._actors]
        try:
            done, _ = await asyncio.wait(waits, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise StalledError(f"no rollout actor has been up for {PATIENCE_S:g} s: {self._actors[0].loss}")
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def must_be_together(config: RolloutConfig) -> bool:
    """Whether trees of a cohort share a budget or an order of grants."""
    budget = config.budget
    shares = budget.calls_per_cohort is not None or budget.leaves_per_cohort is not None
    return shares or isinstance(config.granting, Ranked)


def check_distributable(config: RolloutConfig, *, is_deterministic: bool, num_actors: int) -> None:
    """Refuse what several rollout actors cannot do together. Raises `ConfigError`."""
    if num_actors and config.budget.calls_per_run is not None:
        raise ConfigError("a budget of the run needs all rollouts in one place - at $.rollout.budget.calls_per_run")
    if num_actors and is_deterministic and isinstance(config.granting, Ranked):
        raise ConfigError("ranked granting in logical time needs all rollouts in one place - at $.rollout.granting")


def _record(event: AnyTreeEvent, cohort: Cohort) -> None:
    """Keep the controller's own books."""
    match event:
        case PathStarted() | Forked():
            cohort.leaves.record(1)
        case ForkRanked():
            cohort.num_ranked = max(cohort.num_ranked, event.place)
        case ToolFinished():
            cohort.tool_calls.record(event.result.was_executed)
        case _:
            pass

"""The controller's side of rollout actors: trees are spread, and grown on elsewhere from their events when one dies."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from actors.messages import AnyAnswer, AnyCall, Grow, Grown
from actors.rollout_pool import RolloutPool, check_distributable, must_be_together
from actors.wire import Caller
from engine.branching import Arpo
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.cohorts import Cohorts
from engine.errors import ActorLostError, ArpoError, ConfigError
from engine.events import AnyTreeEvent, Forked, PathStarted, ToolFinished, ToolRequested
from engine.granting import Ranked
from engine.lives import Lives
from engine.rollout import TreeRollout
from engine.rollout_config import BudgetConfig, RolloutConfig
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.tree import TreeBuilder
from engine.types import TrajectoryGroup
from tests.test_rollout import WORDS, Bench, config, new_cohort, searching


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    folder = tmp_path_factory.mktemp("words")
    make_word_tokenizer(folder, words=WORDS)
    return load_tokenizer(folder)


class FakeActor:
    """Grows trees in this loop, with neighbours of its own; dies after so many events, and tells nobody of the last."""

    def __init__(self, world: Bench, *, dies_after: int | None = None) -> None:
        self._world = world
        self._left = dies_after
        self._cohorts: dict[str, Cohorts] = {}
        self.grown: list[Grow] = []

    async def call(self, body: AnyCall, kind: type[ArpoError]) -> AnyAnswer:
        raise AssertionError("a pool only streams")

    async def stream(self, body: AnyCall, kind: type[ArpoError]) -> AsyncGenerator[AnyAnswer, None]:
        assert isinstance(body, Grow)
        # As over a wire: nothing is shared with the caller.
        body = msgspec.structs.replace(body, events=tuple(body.events))
        self.grown.append(body)
        tree = TreeBuilder(body.prompt)
        for event in body.events:
            tree.apply(event)
        happened: asyncio.Queue[AnyTreeEvent | None] = asyncio.Queue()
        cohorts = self._cohorts.setdefault(body.scope, Cohorts(body.config, size=1))
        cohorts.note(body.cohort, body.use)
        rollout = TreeRollout(
            tree,
            config=body.config,
            seed=body.seed,
            cohort=cohorts[body.cohort],
            generator=self._world.generator,
            tools=self._world.tools,
            renderer=self._world.renderer,
            vocab_size=self._world.vocab_size,
            emit=happened.put_nowait,
        )
        growing = asyncio.create_task(rollout.run(), name="grow")
        growing.add_done_callback(lambda task: happened.put_nowait(None))
        try:
            while (event := await happened.get()) is not None:
                if self._left == 0:
                    raise kind("shot")
                self._left = None if self._left is None else self._left - 1
                yield Grown(events=(event,))
            await growing
        finally:
            growing.cancel()


class Farm:
    """A pool of fake actors, whose first lives may end; later lives do not."""

    def __init__(self, tokenizer: HfTokenizer, settings: RolloutConfig, *, dies_after: Sequence[int | None]) -> None:
        self.world = Bench(tokenizer, searching(tokenizer), config=settings, latency_s=1.0)
        self.settings = settings
        self.lives: list[list[FakeActor]] = [[] for _ in dies_after]
        self.dies_after = dies_after

    def start(self, number: int) -> Lives[Caller]:
        @asynccontextmanager
        async def begin() -> AsyncGenerator[Caller, None]:
            first = not self.lives[number]
            actor = FakeActor(self.world, dies_after=self.dies_after[number] if first else None)
            self.lives[number].append(actor)
            yield actor

        return Lives(f"rollout-{number}", begin, limit=3)

    def grow(self, trees: Sequence[tuple[TreeBuilder, Cohort]]) -> tuple[list[TrajectoryGroup], list[AnyTreeEvent]]:
        events: list[AnyTreeEvent] = []

        async def main() -> list[TrajectoryGroup]:
            async with AsyncExitStack() as stack:
                actors = [await stack.enter_async_context(self.start(n)) for n in range(len(self.lives))]
                pool = self.pool = RolloutPool(actors)
                one = {"config": self.settings, "seed": 0, "scope": "run", "emit": events.append}
                return await asyncio.gather(*(pool.grow(tree, cohort, **one) for tree, cohort in trees))

        return run_virtual(main()), events

    def tree(self, name: str) -> TreeBuilder:
        return TreeBuilder(msgspec.structs.replace(self.world.prompt, prompt_id=name))


@pytest.mark.parametrize("dies_after", [0, 1, 7, 20, 40])
def test_a_tree_whose_actor_dies_is_grown_on_by_another_from_its_events(
    tokenizer: HfTokenizer, dies_after: int
) -> None:
    settings = config(Arpo(initial=2, probe_tokens=4, tau=0.0), size=4)
    farm = Farm(tokenizer, settings, dies_after=[dies_after, None])
    cohort = new_cohort(settings)
    (group,), events = farm.grow([(farm.tree("a"), cohort)])
    assert len(group.trajectories) == 4
    first, second = farm.lives[0][0].grown, farm.lives[1][0].grown
    assert (len(first), len(second)) == (1, 1)
    assert len(second[0].events) == dies_after
    assert len({(e.path, e.index) for e in events if isinstance(e, ToolFinished)}) == sum(
        isinstance(e, ToolFinished) for e in events
    ), "no call that was told of is repeated"
    assert Counter((e.path, e.index) for e in events if isinstance(e, ToolRequested)).most_common(1)[0][1] == 1
    assert cohort.leaves.spent == sum(isinstance(e, PathStarted | Forked) for e in events) == 4
    assert cohort.tool_calls.spent == group.num_tool_calls_executed


def test_trees_are_spread_and_those_of_a_cohort_that_shares_a_budget_are_not(tokenizer: HfTokenizer) -> None:
    alone = config(Arpo(initial=2, probe_tokens=4), size=2)
    farm = Farm(tokenizer, alone, dies_after=[None, None])
    farm.grow([(farm.tree(name), new_cohort(alone)) for name in "abcd"])
    assert [len(lives[0].grown) for lives in farm.lives] == [2, 2]

    together = config(Arpo(initial=2, probe_tokens=4), size=2, calls_per_cohort=5)
    farm = Farm(tokenizer, together, dies_after=[None, None])
    cohort = new_cohort(together, size=4)
    _, events = farm.grow([(farm.tree(name), cohort) for name in "abcd"])
    assert sorted(len(lives[0].grown) for lives in farm.lives) == [0, 4]
    assert sum(e.result.was_executed for e in events if isinstance(e, ToolFinished)) == 5
    assert farm.pool.num_homes == 0, "of a cohort nothing is kept when its trees have grown"


def test_a_shared_budget_holds_when_the_actor_of_a_cohort_dies(tokenizer: HfTokenizer) -> None:
    settings = config(Arpo(initial=2, probe_tokens=4), size=2, calls_per_cohort=5)
    farm = Farm(tokenizer, settings, dies_after=[70, None])
    cohort = new_cohort(settings, size=3)
    groups, events = farm.grow([(farm.tree(name), cohort) for name in "abc"])
    assert all(len(group.trajectories) == 2 for group in groups)
    moved = farm.lives[1][0].grown
    assert moved[0].use.num_calls >= 3, "or this proves nothing"
    assert sum(e.result.was_executed for e in events if isinstance(e, ToolFinished)) == 5


def test_what_cannot_be_distributed_is_refused_by_its_key() -> None:
    run = RolloutConfig(budget=BudgetConfig(calls_per_run=9))
    with pytest.raises(ConfigError, match="calls_per_run"):
        check_distributable(run, is_deterministic=False, num_actors=2)
    check_distributable(run, is_deterministic=False, num_actors=0)
    ranked = RolloutConfig(granting=Ranked())
    with pytest.raises(ConfigError, match="granting"):
        check_distributable(ranked, is_deterministic=True, num_actors=1)
    check_distributable(ranked, is_deterministic=False, num_actors=1)
    assert must_be_together(ranked)
    assert not must_be_together(RolloutConfig())


def test_an_error_of_the_actor_itself_is_no_loss(tokenizer: HfTokenizer) -> None:
    settings = config(Arpo(initial=2, probe_tokens=4), size=2)
    farm = Farm(tokenizer, settings, dies_after=[None])

    class Broken(FakeActor):
        async def stream(self, body: AnyCall, kind: type[ArpoError]) -> AsyncGenerator[AnyAnswer, None]:
            raise ArpoError("a bug")
            yield

    @asynccontextmanager
    async def start() -> AsyncGenerator[Caller, None]:
        yield Broken(farm.world)

    async def main() -> None:
        async with Lives[Caller]("rollout-0", start, limit=2) as actor:
            await RolloutPool([actor]).grow(
                farm.tree("a"), new_cohort(settings), config=settings, seed=0, scope="run", emit=lambda event: None
            )

    with pytest.raises(ArpoError, match="a bug") as caught:
        run_virtual(main())
    assert not isinstance(caught.value, ActorLostError)

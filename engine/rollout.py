"""TreeRollout: grows the tree of one prompt, one task a path, branching while the parents stream.

    path task:  sample ──chunks──> entropy monitor ──wanted──> cohort ──granted──> task of the child
                  │ segment ends
                  ├─ no tool call ──> reward ──> ended
                  └─ tool calls ────> executor ──> observation ──> sample again

| loop | consumes      | waits for                | produces                        | unblocked by               |
|------|---------------|--------------------------|---------------------------------|----------------------------|
| path | chunks, calls | generator, tools, reward | events                          | deadlines of these three   |
| tree | ends of paths | being idle               | first paths, supplements, group | an end of a path, cohort   |

Everything that happens is an event, applied to the tree and handed to `emit` in that order: a tree can go on from its
events at any point. A failure of a generator or a tool is data in the trajectory, never an exception.
"""

import asyncio
from collections.abc import Callable, Iterable

from engine.branching import TreeGrpo
from engine.budget import Account
from engine.cohort import Cohort
from engine.coins import coin
from engine.events import AnyTreeEvent, ForkConsidered, Forked, ForkLapsed, ForkRanked, GroupFinished, PathStarted
from engine.granting import Proposal
from engine.interfaces import Samples, ToolHost
from engine.ledger import PathLedger
from engine.monitor import EntropyMonitor
from engine.path import PathRunner
from engine.renderer import Renderer
from engine.rollout_config import RolloutConfig
from engine.standing import Standing
from engine.tree import Path, TreeBuilder
from engine.types import RolloutStatus, TrajectoryGroup


class TreeRollout:
    """One prompt's rollout and its cohort's `Member`. Used once: `await rollout.run()` returns the finished group."""

    def __init__(
        self,
        tree: TreeBuilder,
        *,
        config: RolloutConfig,
        seed: int,
        cohort: Cohort,
        generator: Samples,
        tools: ToolHost,
        renderer: Renderer,
        vocab_size: int,
        emit: Callable[[AnyTreeEvent], None],
    ) -> None:
        """`tree` may already hold paths: they go on from where their events end. `seed` is the run's."""
        self._tree = tree
        self._config = config
        self._seed = seed
        self._cohort = cohort
        self._emit_outside = emit
        # A resumed tree's spending is in its cohort's accounts already: other trees must not take its place meanwhile.
        self._leaves = Account(self.prompt_id, limit=config.size, parent=cohort.leaves, spent=len(tree.paths))
        limit = config.budget.calls_per_prompt
        self._calls = Account(self.prompt_id, limit=limit, parent=cohort.tool_calls, spent=tree.num_executed)
        self._monitor = EntropyMonitor(tree, policy=config.branching, seed=seed, vocab_size=vocab_size)
        self._standing = Standing(tree, size=config.size, cohort=cohort.number, outlook=cohort.outlook)
        self._runner = PathRunner(
            tree,
            sampling=config.sampling,
            out_of_calls=config.budget.out_of_calls,
            seed=seed,
            branching=config.branching,
            stream_interval=config.stream_interval,
            generator=generator,
            tools=tools,
            renderer=renderer,
            standing=self._standing,
            emit=self._emit,
            on_progress=self._consider,
        )
        self._ended = asyncio.Event()
        self._is_done = False
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> TrajectoryGroup:
        """Grow the tree to M trajectories, or to what the budgets allow, each of them scored.

        Cancelling ends all paths; the tree keeps what its events say, and a later rollout may go on from there.
        """
        started = asyncio.get_running_loop().time()
        try:
            async with self._tasks:
                for path in self._tree.live_paths:
                    self._spawn(path)
                self._cohort.join(self)
                self._restore_forks()
                while not self._is_done:
                    self._ended.clear()
                    self._cohort.advance(self)
                    if not self._is_done:
                        await self._ended.wait()
        except BaseException:
            # Also when cancelled: nobody may be granted, and no task be started, because this tree went away.
            self._cohort.abandon(self)
            raise
        self._cohort.leave(self)
        self._emit(GroupFinished(prompt_id=self.prompt_id))
        return self._tree.group(wall_s=asyncio.get_running_loop().time() - started)

    # -- what the cohort sees ---------------------------------------------------------------------------------

    @property
    def prompt_id(self) -> str:
        return self._tree.prompt.prompt_id

    @property
    def rounds(self) -> Iterable[int]:
        """For each live path, the last round in which it can no longer propose; 0 while first paths are missing."""
        if self._num_missing:
            yield 0
        for path in self._tree.live_paths:
            yield path.num_considered

    @property
    def is_idle(self) -> bool:
        return not self._is_done and not self._tree.live_paths

    @property
    def room(self) -> int:
        return 0 if self._is_settled else self._places

    def grant(self, proposal: Proposal) -> None:
        """Start the Z branches of a granted proposal, as far as there is room."""
        before = len(self._tree.paths)
        for _ in range(self._config.branching.branches):
            self._fork(proposal.path, proposal.length)
        if len(self._tree.paths) == before:
            self._emit(ForkLapsed(prompt_id=self.prompt_id, path=proposal.path, length=proposal.length))

    def rank(self, proposal: Proposal, *, place: int) -> None:
        """Journal the place: a resumed cohort goes on with the same ranking."""
        self._emit(ForkRanked(prompt_id=self.prompt_id, path=proposal.path, length=proposal.length, place=place))

    def fill(self) -> None:
        """Start all that is missing together: first paths, then expansions or supplements; done where none is."""
        before = len(self._tree.paths)
        if self._num_missing:
            self._start_first()
        elif isinstance(self._config.branching, TreeGrpo) and self.room:
            self._expand(self._config.branching)
        elif self._config.supplements:
            for _ in range(self.room):
                self._start(is_supplement=True)
        self._is_done = len(self._tree.paths) == before
        self._ended.set()

    # -- starting paths ---------------------------------------------------------------------------------------

    @property
    def _num_missing(self) -> int:
        """First paths that have not started yet."""
        started = sum(path.forked_from < 0 and not path.is_supplement for path in self._tree.paths)
        return max(min(self._monitor.initial_paths(size=self._config.size) - started, self._places), 0)

    @property
    def _places(self) -> int:
        """Left under M and the cohort's budget, whatever became of the tree."""
        left = self._leaves.left
        return 0 if left is None else left

    @property
    def _is_settled(self) -> bool:
        """All paths came to one score, and a tree of which that is so gets no further ones."""
        if self._config.grow == "all" or self._tree.live_paths or self._num_missing:
            return False
        ended = [p.reward.score for p in self._tree.paths if p.reward and p.status is not RolloutStatus.FAILED]
        return len(ended) > 1 and len(set(ended)) == 1

    def _start_first(self) -> None:
        """The first path goes ahead, so that the prompt is prefilled once; the others follow its first tokens."""
        count = self._num_missing if self._tree.paths else 1
        for _ in range(count):
            self._start(is_supplement=False)

    def _start(self, *, is_supplement: bool) -> None:
        reservation = self._leaves.reserve()
        if reservation is not None:
            number = len(self._tree.paths)
            self._emit(PathStarted(prompt_id=self.prompt_id, path=number, is_supplement=is_supplement))
            reservation.settle(1)
            self._spawn(self._tree.paths[number])

    def _fork(self, parent: int, length: int) -> None:
        reservation = self._leaves.reserve()
        if reservation is not None:
            child = len(self._tree.paths)
            self._emit(Forked(prompt_id=self.prompt_id, path=parent, child=child, length=length))
            reservation.settle(1)
            self._spawn(self._tree.paths[child])

    def _expand(self, policy: TreeGrpo) -> None:
        """Tree-GRPO: branch at random steps of each initial tree; one without a step gets a fresh path instead."""
        roots = [path for path in self._tree.paths if path.forked_from < 0]
        steps = {
            root.number: [(p, mark.length) for p in self._tree.paths if self._root_of(p) is root for mark in p.marks]
            for root in roots
        }
        for root in roots:
            for turn in range(policy.expand):
                if choices := steps[root.number]:
                    where = coin(self._seed, self.prompt_id, "expand", len(self._tree.paths), turn)
                    path, length = choices[int(where * len(choices))]
                    self._fork(path.number, length)
                else:
                    self._start(is_supplement=True)

    def _root_of(self, path: Path) -> Path:
        while path.forked_from >= 0:
            path = self._tree.paths[path.forked_from]
        return path

    def _spawn(self, path: Path) -> None:
        self._tasks.create_task(self._run_path(path), name=f"{self.prompt_id}/path{path.number}")

    async def _run_path(self, path: Path) -> None:
        name, limit = f"{self.prompt_id}/{path.number}", self._config.budget.calls_per_path
        ledger = PathLedger(name, limit=limit, expenses=self._calls, inherited=path.results.values())
        await self._runner.run(path, ledger=ledger)
        if path.number == 0 and self._num_missing:
            # AEPO knows its N only now; forks of the first path may still grow.
            self._start_first()
        self._ended.set()

    # -- watching ---------------------------------------------------------------------------------------------

    def _consider(self, path: Path) -> None:
        """A path moved: start the first paths behind its leader, and ask the monitor."""
        if path.number == 0 and self._num_missing:
            self._start_first()
        considered = self._monitor.consider(path)
        if considered is None:
            return
        self._emit(considered)
        if considered.is_wanted:
            self._propose(considered)
        self._cohort.advance(self)

    def _propose(self, considered: ForkConsidered) -> None:
        if self.room:
            self._cohort.propose(self._proposal(considered))

    def _restore_forks(self) -> None:
        """Wanted forks that no earlier process granted: back to their places, and those that had none are proposed."""
        for where, considered in list(self._tree.open_forks.items()):
            if where in self._tree.ranked:
                self._cohort.restore(self._proposal(considered), place=self._tree.ranked[where])
        for where, considered in list(self._tree.open_forks.items()):
            if where not in self._tree.ranked:
                self._propose(considered)

    def _proposal(self, considered: ForkConsidered) -> Proposal:
        return Proposal(
            prompt_id=self.prompt_id,
            path=considered.path,
            length=considered.length,
            observation=considered.observation,
            score=considered.score,
        )

    def _emit(self, event: AnyTreeEvent) -> None:
        self._tree.apply(event)
        self._standing.learn(event)
        self._emit_outside(event)

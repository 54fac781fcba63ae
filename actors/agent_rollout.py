"""AgentRollout: the tree of one prompt, grown by an agent of the user's; a path is one run of it.

    agent ──> policy.sample ──> generator        │ returns
      │  └──> policy.run ────> tools, budgets     ▼
      └─ policy.fork ──> another path          reward ──> ended

| loop | consumes       | waits for                | produces            | unblocked by                       |
|------|----------------|--------------------------|---------------------|------------------------------------|
| path | its agent      | generator, tools, itself | events, a reward    | their deadlines, `timeout_s`       |
| tree | ends of paths  | no path being alive      | paths, a group      | an end of a path                   |

An agent is a function with a stack, so nobody but itself can branch it: the entropy monitor has no part in this. What
an agent raises fails its path and nothing else. A path that its process did not finish has failed, too, since nobody
can go on in the middle of a function; another one takes its place.
"""

import asyncio
import math
from collections.abc import Callable, Iterable

from actors.gateway.dialogue import Dialogue
from actors.policy import Agent, Policy, Verdict
from engine.branching import Chain
from engine.budget import Account
from engine.cohort import Cohort
from engine.errors import AgentError, ArpoError, boundary, own_cancellation
from engine.events import AnyTreeEvent, Forked, GroupFinished, PathEnded, PathStarted, Rewarded
from engine.granting import Proposal
from engine.interfaces import Samples, ToolHost
from engine.ledger import PathLedger
from engine.path_reward import reward_of
from engine.rollout_config import RolloutConfig
from engine.segment import SegmentSampler
from engine.tree import Path, TreeBuilder
from engine.types import Reward, RolloutStatus, TrajectoryGroup

AGENT_TIMEOUT_S = 1800.0
"""How long one run of an agent may take."""
INTERRUPTED = "its process ended, and an agent cannot go on in its middle"


class AgentRollout:
    """One prompt's rollout and its cohort's `Member`. Used once: `await rollout.run()` returns the finished group."""

    def __init__(
        self,
        tree: TreeBuilder,
        *,
        agent: Agent,
        config: RolloutConfig,
        seed: int,
        cohort: Cohort,
        generator: Samples,
        tools: ToolHost,
        dialogue: Dialogue,
        emit: Callable[[AnyTreeEvent], None],
        timeout_s: float = AGENT_TIMEOUT_S,
    ) -> None:
        """`config.branching` says with how many paths the tree begins: all M of `chain`, otherwise its `initial`, so
        that there is room for forks. `tree` may hold paths of an earlier process, live ones among them."""
        self._tree = tree
        self._agent = agent
        self._config = config
        self._cohort = cohort
        self._tools = tools
        self._dialogue = dialogue
        self._emit_outside = emit
        self._timeout_s = timeout_s
        places = config.size + sum(path.is_live or path.detail == INTERRUPTED for path in tree.paths)
        self._leaves = Account(self.prompt_id, limit=places, parent=cohort.leaves, spent=len(tree.paths))
        limit = config.budget.calls_per_prompt
        self._calls = Account(self.prompt_id, limit=limit, parent=cohort.tool_calls, spent=tree.num_executed)
        self._moved = asyncio.Event()
        """A path was sampled on, or ended."""
        self._segments = SegmentSampler(
            tree,
            sampling=config.sampling,
            seed=seed,
            branching=Chain(),
            stream_interval=config.stream_interval,
            generator=generator,
            renderer=dialogue.renderer,
            emit=self._emit,
            on_progress=lambda path: self._moved.set(),
        )
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> TrajectoryGroup:
        """Have the agent run M times, or as often as the budgets allow, and every path scored.

        Cancelling cancels the agents.
        """
        started = asyncio.get_running_loop().time()
        self._cohort.join(self)
        try:
            for path in self._tree.live_paths:
                self._end(path, Reward(score=0.0, reason=INTERRUPTED), RolloutStatus.FAILED, detail=INTERRUPTED)
            async with self._tasks:
                await self._grow()
        except BaseException:
            self._cohort.abandon(self)
            raise
        self._cohort.leave(self)
        self._emit(GroupFinished(prompt_id=self.prompt_id))
        return self._tree.group(wall_s=asyncio.get_running_loop().time() - started)

    async def _grow(self) -> None:
        """The first path goes ahead, so that the prompt is prefilled once; then the others, then what forks left."""
        branching = self._config.branching
        initial = self.room if isinstance(branching, Chain) else min(branching.initial, self.room)
        if self._start(is_supplement=False):
            await self._moved.wait()
        for _ in range(initial - 1):
            self._start(is_supplement=False)
        while True:
            while self._tree.live_paths:
                self._moved.clear()
                await self._moved.wait()
            started = [self._start(is_supplement=True) for _ in range(self.room)]
            if not any(started):
                return

    # -- what the cohort sees ---------------------------------------------------------------------------------

    @property
    def prompt_id(self) -> str:
        return self._tree.prompt.prompt_id

    @property
    def room(self) -> int:
        left = self._leaves.left
        return 0 if left is None else left

    @property
    def rounds(self) -> Iterable[int]:
        return ()

    @property
    def is_idle(self) -> bool:
        """Never: it fills itself up."""
        return False

    def rank(self, proposal: Proposal, *, place: int) -> None:
        raise AssertionError("an agent proposes nothing")

    def grant(self, proposal: Proposal) -> None:
        raise AssertionError("an agent proposes nothing")

    def fill(self) -> None:
        raise AssertionError("it is never idle")

    # -- paths ------------------------------------------------------------------------------------------------

    def _start(self, *, is_supplement: bool) -> bool:
        number = len(self._tree.paths)
        started = PathStarted(prompt_id=self.prompt_id, path=number, is_supplement=is_supplement)
        return self._spawn(started, number, self._agent) is not None

    def _branch(self, agent: Agent, parent: Policy) -> bool:
        child = len(self._tree.paths)
        if parent.length == self._tree.prompt.token_ids.size:
            event = PathStarted(prompt_id=self.prompt_id, path=child)
        else:
            event = Forked(prompt_id=self.prompt_id, path=parent.number, child=child, length=parent.length)
        if (policy := self._spawn(event, child, agent)) is None:
            return False
        policy.calls = parent.calls
        return True

    def _spawn(self, event: PathStarted | Forked, number: int, agent: Agent) -> Policy | None:
        reservation = self._leaves.reserve()
        if reservation is None:
            return None
        self._emit(event)
        reservation.settle(1)
        path = self._tree.paths[number]
        name, limit = f"{self.prompt_id}/{number}", self._config.budget.calls_per_path
        policy = Policy(
            self._tree,
            path,
            segments=self._segments,
            dialogue=self._dialogue,
            tools=self._tools,
            ledger=PathLedger(name, limit=limit, expenses=self._calls, inherited=path.results.values()),
            config=self._config,
            emit=self._emit,
            branch=self._branch,
        )
        self._tasks.create_task(self._run_path(path, agent, policy), name=f"{self.prompt_id}/path{number}")
        return policy

    async def _run_path(self, path: Path, agent: Agent, policy: Policy) -> None:
        status, detail = RolloutStatus.COMPLETED, ""
        said: Verdict = None
        try:
            said = await self._run_agent(agent, policy)
            if not policy.num_sampled:
                raise AgentError("agent: it returned without having sampled anything")
        except ArpoError as error:
            status, detail = RolloutStatus.FAILED, str(error)
        await policy.close()
        if policy.ended is not None:  # whatever the agent made of it
            status, detail = policy.ended.status, policy.ended.detail
        elif status is RolloutStatus.COMPLETED and path.finish_reason == "length" and not policy.room:
            status = RolloutStatus.TRUNCATED
        reward = Reward(score=0.0, reason=detail)
        if status is not RolloutStatus.FAILED:
            try:
                reward = await self._score(path, said)
            except ArpoError as error:
                status, detail = RolloutStatus.FAILED, str(error)
                reward = Reward(score=0.0, reason=detail)
        self._end(path, reward, status, detail=detail)

    async def _run_agent(self, agent: Agent, policy: Policy) -> Verdict:
        try:
            async with asyncio.timeout(self._timeout_s):
                with own_cancellation(AgentError, "agent"), boundary(AgentError, "agent"):
                    return await agent(policy, self._tree.prompt)
        except TimeoutError:
            raise AgentError(f"agent: not at its end within {self._timeout_s:g} s") from None

    async def _score(self, path: Path, said: object) -> Reward:
        if isinstance(said, Reward):
            reward = said
        elif isinstance(said, int | float):
            reward = Reward(score=float(said), is_correct=said > 0)
        elif said is None or isinstance(said, str):
            tools, renderer = self._tools, self._dialogue.renderer
            return await reward_of(self._tree, path, tools=tools, renderer=renderer, text=said)
        else:
            raise AgentError(f"agent: it returned a {type(said).__name__}, not a score, a text or None")
        if not math.isfinite(reward.score):
            raise AgentError(f"agent: it returned a score of {reward.score}")
        return reward

    def _end(self, path: Path, reward: Reward, status: RolloutStatus, *, detail: str) -> None:
        self._emit(Rewarded(prompt_id=self.prompt_id, path=path.number, reward=reward))
        self._emit(PathEnded(prompt_id=self.prompt_id, path=path.number, status=status, detail=detail))
        self._moved.set()

    def _emit(self, event: AnyTreeEvent) -> None:
        self._tree.apply(event)
        self._emit_outside(event)

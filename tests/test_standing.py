"""Order in the lines before policy and tools: oldest cohort first, then longest expected work, learned in the run."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.bench import simulation
from actors.bench.workload import Law, Workload
from engine.clock import run_virtual
from engine.cohorts import Cohorts
from engine.events import AnyTreeEvent, Observed, PathEnded, PathStarted, TokensSampled, ToolFinished, ToolRequested
from engine.inference.scripted import Script, ScriptedGenerator
from engine.outlook import Outlook
from engine.rollout_config import RolloutConfig
from engine.standing import Standing
from engine.tree import TreeBuilder
from engine.turnstile import FIRST_COME
from engine.types import GenerateRequest, Prompt, RolloutStatus, SamplingParams, ToolCall, ToolResult
from tools.executor import Executor
from tools.schema import tool


def told(*, calls: dict[str, float] | None = None, wanted: float = 0.0) -> Outlook:
    """An outlook that has seen two turns: 1 s, a call two times in three, and then 0.5 s to the end."""
    outlook = Outlook()
    for number in range(900):
        outlook.saw_tokens(100, 1.0)
        outlook.saw_segment(0, num_tokens=100, is_call=number % 3 > 0)
        outlook.saw_segment(1, num_tokens=50, is_call=False)
        outlook.saw_result(is_fork_wanted=number < 900 * wanted)
        for name, seconds in (calls or {"search": 3.0}).items():
            outlook.saw_call(name, seconds)
    return outlook


def floats(size: int) -> np.ndarray:
    return np.zeros(size, np.float32)


def prompt(name: str = "e0-r0") -> Prompt:
    return Prompt(prompt_id=name, epoch=0, row=0, token_ids=np.arange(4, dtype=np.int32), question="", ground_truth="")


class Tree:
    """A tree that is told what happens, and whose standing learns of it."""

    def __init__(self, outlook: Outlook | None, *, size: int = 2, cohort: int = 0) -> None:
        self.builder = TreeBuilder(prompt())
        self.standing = Standing(self.builder, size=size, cohort=cohort, outlook=outlook)

    def start(self, *turns: int) -> None:
        """Paths at the beginning of a segment behind so many observations."""
        for turn in turns:
            number = len(self.builder.paths)
            self.apply(PathStarted(prompt_id="e0-r0", path=number))
            for index in range(turn):
                self.sample(number, 3, "stop")
                self.call(number, index, seconds=0.0)

    def sample(self, path: int, num: int, reason: str = "", *, num_prefilled: int = 0) -> None:
        self.apply(
            TokensSampled(
                prompt_id="e0-r0",
                path=path,
                token_ids=np.ones(num, np.int32),
                logprobs=floats(num),
                entropy_low=floats(num),
                entropy_high=floats(num),
                versions=np.zeros(num, np.int32),
                finish_reason=reason,
                num_prefilled_tokens=num_prefilled,
            )
        )

    def call(self, path: int, index: int, *, seconds: float) -> None:
        request = ToolCall(name="search", arguments={})
        self.apply(ToolRequested(prompt_id="e0-r0", path=path, call=request, index=index))
        result = ToolResult(name="search", text="two", duration_s=seconds)
        self.apply(ToolFinished(prompt_id="e0-r0", path=path, index=index, result=result))
        self.apply(Observed(prompt_id="e0-r0", path=path, token_ids=np.ones(2, np.int32)))

    def apply(self, event: AnyTreeEvent) -> None:
        self.builder.apply(event)
        self.standing.learn(event)


def tree(*turns: int, outlook: Outlook | None, size: int = 2, cohort: int = 0) -> Tree:
    """Made without teaching the outlook anything."""
    made = Tree(None, size=size, cohort=cohort)
    made.start(*turns)
    made.standing = Standing(made.builder, size=size, cohort=cohort, outlook=outlook)
    return made


def test_a_path_with_more_turns_to_come_goes_before_one_that_is_about_to_answer() -> None:
    made = tree(0, 1, outlook=told())
    fresh, old = made.builder.paths
    assert made.standing.before_policy(fresh) < made.standing.before_policy(old)
    assert made.standing.before_policy(fresh) == (0, pytest.approx(-(1.0 + 2 / 3 * (3.0 + 0.5)), rel=0.02))


def test_a_call_of_a_slow_tool_goes_before_one_of_a_fast_tool() -> None:
    made = tree(0, 0, outlook=told(calls={"browse": 6.0, "search": 0.2}))
    one, other = made.builder.paths
    assert made.standing.before_tool(one, ["search", "browse"]) < made.standing.before_tool(other, ["search"])
    assert made.standing.before_tool(one, ["browse"]) == (0, pytest.approx(-6.5, rel=0.02))


def test_whoever_was_admitted_first_goes_first_however_little_is_left() -> None:
    outlook = told()
    old, young = tree(1, 1, outlook=outlook, cohort=3), tree(0, 0, outlook=outlook, cohort=4)
    assert old.standing.before_policy(old.builder.paths[0]) < young.standing.before_policy(young.builder.paths[0])


def test_paths_that_will_start_when_the_last_one_has_ended_count_as_work_behind_it() -> None:
    outlook = told()
    full, dry = tree(1, 1, outlook=outlook, size=2), tree(1, 1, outlook=outlook, size=4)
    (_, of_full), (_, of_dry) = (one.standing.before_policy(one.builder.paths[0]) for one in (full, dry))
    assert of_dry == pytest.approx(of_full - outlook.remaining_s(0))
    forking = told(wanted=1.0)
    filling = tree(0, 0, outlook=forking, size=4)
    missing = 1 - 2 * forking.forks(0) / 2
    assert filling.standing.before_policy(filling.builder.paths[0])[1] == pytest.approx(
        -(1 + missing) * forking.remaining_s(0)
    )
    assert 0 < missing < 1, "two paths that fork two times in three"


def test_without_an_outlook_everybody_goes_as_they_come() -> None:
    made = tree(0, 1, outlook=None)
    assert {made.standing.before_policy(path) for path in made.builder.paths} == {FIRST_COME}
    assert made.standing.before_tool(made.builder.paths[0], ["search"]) == FIRST_COME


def test_waiting_is_no_work_neither_for_the_policy_nor_for_a_tool() -> None:
    """Ten seconds in a line, then 0.1 s a token, and so again for a request that goes on with the segment; 30 s in a
    line, then a call of 2 s."""

    async def main() -> Outlook:
        outlook = Outlook()
        made = Tree(outlook)
        made.start(0)
        for turn in range(200):
            for reason in ("", "stop"):
                await asyncio.sleep(10.0)
                made.sample(0, 10, num_prefilled=5)
                await asyncio.sleep(1.0)
                made.sample(0, 10, reason)
            await asyncio.sleep(30.0)
            made.call(0, turn, seconds=2.0)
        return outlook

    outlook = run_virtual(main())
    assert outlook.behind_calls_s(10_000, ["search"]) - outlook.remaining_s(10_000) == pytest.approx(2.0, rel=0.01)
    assert outlook.remaining_s(199) == pytest.approx(40 * 0.1 + 2.0, rel=0.02), "a segment and a call, behind all"


def test_a_failed_path_says_nothing_of_how_long_paths_are() -> None:
    outlook = Outlook()
    made = Tree(outlook)
    made.start(0)
    before = outlook.remaining_s(0)
    made.apply(PathEnded(prompt_id="e0-r0", path=0, status=RolloutStatus.FAILED))
    assert outlook.remaining_s(0) == before


def test_a_run_learns_the_law_of_its_workload(tmp_path: Path) -> None:
    """1 to 4 calls: 2.5 of them in the mean, of 0.3 s * exp(1.2**2 / 2), and a segment more, of 60 tokens * 1.2."""
    workload = Workload(Law(num_prompts=16, num_slots=16, num_workers=16), seed=0, folder=tmp_path)
    outlook = Outlook()

    async def main() -> None:
        parts = simulation.Neighbours(workload)
        await parts.grow_all(workload.prompts(), outlook=outlook)

    run_virtual(main())
    segment_s, call_s = 0.36, 0.62
    assert outlook.remaining_s(0) == pytest.approx(3.5 * segment_s + 2.5 * call_s, rel=0.15)
    assert outlook.remaining_s(4) == pytest.approx(segment_s, rel=0.25), "nobody has been seen to call a fifth time"


# -- the lines --------------------------------------------------------------------------------------------------------


def in_line(name: str, *precedence: float) -> GenerateRequest:
    ids = np.ones(1, np.int32)
    return GenerateRequest(
        request_id=name, token_ids=ids, sampling=SamplingParams(max_new_tokens=9), precedence=precedence
    )


def test_slots_of_the_policy_are_given_by_precedence() -> None:
    async def main() -> list[str]:
        generator = ScriptedGenerator(lambda request: Script(token_ids=[1], token_s=1.0), num_slots=1)
        served: list[str] = []

        async def ask(request: GenerateRequest) -> None:
            async for chunk in generator.generate(request):
                served.append(chunk.request_id)

        requests = [in_line("first", 1, -1.0), in_line("short", 0, -1.0), in_line("long", 0, -2.0), in_line("new", 1)]
        async with asyncio.TaskGroup() as tasks:
            for one in requests:
                tasks.create_task(ask(one))
        return served

    assert run_virtual(main()) == ["first", "long", "short", "new"]


def served_calls(precedences: Sequence[tuple[float, ...]]) -> list[str]:
    """In which order a tool with one permit serves calls that come in turn: by their numbers."""
    served: list[str] = []

    @tool(max_concurrency=1)
    async def search(query: str) -> str:
        """Take a second."""
        served.append(query)
        await asyncio.sleep(1.0)
        return query

    async def main() -> None:
        async with Executor([search]) as executor, asyncio.TaskGroup() as tasks:
            for number, precedence in enumerate(precedences):
                call = ToolCall(name="search", arguments={"query": str(number)})
                tasks.create_task(executor.call(call, precedence=precedence))

    run_virtual(main())
    return served


def test_permits_of_a_tool_are_given_by_precedence() -> None:
    assert served_calls([(0, -1.0), (1, -9.0), (0, -1.0), (0, -3.0), ()]) == ["0", "4", "3", "2", "1"]


def test_the_key_chooses_the_order_and_a_run_learns_in_all_its_cohorts() -> None:
    ordered = Cohorts(RolloutConfig(order="longest_expected"), size=2)
    assert isinstance(ordered[0].outlook, Outlook)
    assert ordered[0].outlook is ordered[1].outlook
    assert Cohorts(RolloutConfig(), size=2)[0].outlook is None

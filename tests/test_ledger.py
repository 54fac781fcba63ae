"""The ledger of a path over the real executor: whatever happens to calls, no budget is overspent, all is settled."""

import asyncio
import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from engine.budget import Account
from engine.clock import run_virtual
from engine.errors import BudgetError
from engine.ledger import PathLedger
from engine.types import ToolCall, ToolResult
from tools.call_cache import MemoryCache
from tools.executor import Executor
from tools.faults import Behaviour, unsteady_tool
from tools.schema import Tool, tool

LIMITS = st.none() | st.integers(0, 6)
BEHAVIOURS: list[Behaviour] = ["ok", "raises", "down", "hangs"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One call: who makes it when, what it asks, how its attempts behave, and when it is given up, if ever."""

    path: int
    at_s: float
    query: str
    name: str
    cancel_after_s: float | None


PLANS = st.lists(
    st.builds(
        Plan,
        path=st.integers(0, 3),
        at_s=st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0, 9.0]),
        query=st.sampled_from("ab"),
        name=st.sampled_from(["pure", "past", "once"]),
        cancel_after_s=st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    ),
    max_size=16,
)


@dataclass
class Case:
    """A small world: two prompts of two paths each, a run above them, and tools that misbehave as they were told."""

    limits: list[int | None]
    plans: list[Plan]
    behaviours: list[Behaviour]
    num_begun: list[int] = field(default_factory=lambda: [0] * 4)
    """Executions that really began, by the path that caused them: what no limit may be below."""
    results: list[list[ToolResult]] = field(default_factory=lambda: [[] for _ in range(4)])

    def __post_init__(self) -> None:
        run, first, second, *paths = self.limits
        self.run = Account("run", limit=run)
        self.prompts = [Account("p0", limit=first, parent=self.run), Account("p1", limit=second, parent=self.run)]
        self.ledgers = [
            PathLedger(f"path{i}", limit=limit, expenses=self.prompts[i // 2], inherited=())
            for i, limit in enumerate(paths)
        ]

    @property
    def accounts(self) -> list[Account]:
        return [self.run, *self.prompts, *(ledger.answers for ledger in self.ledgers)]

    def check(self) -> None:
        for account in self.accounts:
            assert account.reserved >= 0
            assert account.limit is None or account.spent + account.reserved <= account.limit

    def tools(self) -> list[Tool]:
        inner = unsteady_tool(self.behaviours, latency_s=1.0)

        def made(name: str, **limits: bool | int) -> Tool:
            @tool(name=name, host="host", timeout_s=4.0, max_concurrency=2, **limits)
            async def unsteady(query: str) -> str:
                """U."""
                task = asyncio.current_task()
                assert task is not None
                number = int(task.get_name())
                if task not in self._counted:
                    self._counted.add(task)
                    self.num_begun[number] += 1
                    self.check()
                return await inner.call({"query": query})

            return unsteady

        return [
            made("pure", is_pure=True, max_retries=1),
            made("past", depends_on_history=True),
            made("once", is_idempotent=True, max_retries=2),
        ]

    async def one(self, executor: Executor, plan: Plan) -> None:
        """What a path does with a call."""
        reservation = self.ledgers[plan.path].reserve()
        if reservation is None:
            return
        with reservation:
            history = [ToolCall(name="past", arguments={"query": "z"})] * (plan.path % 2)
            result = await executor.call(ToolCall(name=plan.name, arguments={"query": plan.query}), history=history)
            reservation.settle(result)
            self.results[plan.path].append(result)

    async def main(self) -> None:
        self._counted: set[asyncio.Task[object]] = set()
        options = {"breaker_threshold": 4, "breaker_pause_s": 2.0, "rng": random.Random(0)}
        executor = Executor(self.tools(), cache=MemoryCache(max_bytes=20), **options)
        async with executor, asyncio.TaskGroup() as calls:
            for plan in self.plans:
                calls.create_task(self._planned(executor, plan))
        self.check()

    async def _planned(self, executor: Executor, plan: Plan) -> None:
        await asyncio.sleep(plan.at_s)
        call = asyncio.create_task(self.one(executor, plan), name=str(plan.path))
        done, _ = await asyncio.wait([call], timeout=plan.cancel_after_s)
        if not done:
            call.cancel()
            await asyncio.wait([call])
        self.check()


@given(
    limits=st.lists(LIMITS, min_size=7, max_size=7),
    plans=PLANS,
    behaviours=st.lists(st.sampled_from(BEHAVIOURS), max_size=24),
)
@settings(max_examples=150)
def test_no_budget_is_overspent_and_every_reservation_is_settled_whatever_happens_to_calls(
    limits: list[int | None], plans: list[Plan], behaviours: list[Behaviour]
) -> None:
    case = Case(limits, plans, behaviours)
    run_virtual(case.main())
    assert [account.reserved for account in case.accounts] == [0] * 7
    begun = [sum(case.num_begun[:2]), sum(case.num_begun[2:])]
    executed = [sum(r.was_executed for results in case.results[i : i + 2] for r in results) for i in (0, 2)]
    for prompt, num_begun, num_executed in zip(case.prompts, begun, executed, strict=True):
        assert num_executed <= num_begun <= prompt.spent
        assert prompt.limit is None or num_begun <= prompt.limit
    assert case.run.spent == sum(prompt.spent for prompt in case.prompts)
    for ledger, results in zip(case.ledgers, case.results, strict=True):
        assert sum(r.was_answered for r in results) <= ledger.answers.spent
    if all(plan.cancel_after_s is None for plan in plans):
        assert [prompt.spent for prompt in case.prompts] == executed == begun


EXECUTED = ToolResult(name="t", text="")


@pytest.mark.parametrize(
    ("result", "answers", "expenses"),
    [
        (EXECUTED, 1, 1),
        (ToolResult(name="t", text="", status="error"), 1, 1),
        (ToolResult(name="t", text="", status="timeout"), 1, 1),
        (ToolResult(name="t", text="", is_cached=True), 1, 0),
        (ToolResult(name="t", text="", status="timeout", is_shared=True), 1, 0),
        (ToolResult(name="t", text="", status="refused"), 0, 0),
        (ToolResult(name="t", text="", status="malformed"), 0, 0),
    ],
)
def test_who_pays_for_what(result: ToolResult, answers: int, expenses: int) -> None:
    prompt = Account("prompt")
    ledger = PathLedger("path", limit=5, expenses=prompt, inherited=())
    reservation = ledger.reserve()
    assert reservation is not None
    with reservation:
        assert (ledger.answers.reserved, prompt.reserved) == (1, 1)
        reservation.settle(result)
    assert (ledger.answers.spent, prompt.spent) == (answers, expenses)
    assert (ledger.answers.reserved, prompt.reserved) == (0, 0)
    with pytest.raises(BudgetError, match="settled twice"):
        reservation.settle(result)


def test_a_call_that_was_cancelled_or_lost_is_paid_in_full() -> None:
    prompt = Account("prompt")
    ledger = PathLedger("path", limit=5, expenses=prompt, inherited=())
    reservation = ledger.reserve()
    assert reservation is not None
    with pytest.raises(asyncio.CancelledError), reservation:
        raise asyncio.CancelledError
    assert (ledger.answers.spent, prompt.spent) == (1, 1)


def test_a_call_that_the_prompt_cannot_pay_for_leaves_the_path_as_it_was() -> None:
    ledger = PathLedger("path", limit=1, expenses=Account("prompt", limit=0), inherited=())
    assert ledger.reserve() is None
    assert (ledger.answers.reserved, ledger.answers.left) == (0, 1)


def test_a_branch_has_had_the_answers_it_inherits() -> None:
    cached = ToolResult(name="t", text="", is_cached=True)
    refused = ToolResult(name="t", text="", status="refused")

    def may_call(limit: int) -> bool:
        ledger = PathLedger("path", limit=limit, expenses=Account("prompt"), inherited=[EXECUTED, cached, refused])
        return ledger.reserve() is not None

    assert [may_call(limit) for limit in (0, 1, 2, 3)] == [False, False, False, True]

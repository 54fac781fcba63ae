"""PathLedger: what one path may still ask of tools, and at whose expense its calls run.

Two things are bounded. How often tools *answer* a path is a limit of that path alone, and no matter of who executed
what: it depends on no cache and on no timing. How often tools *run* is what calls cost; the accounts of prompt, cohort
and run pay for it. Both are reserved before a call and settled behind it.

| what became of the call               | the path pays | prompt, cohort and run pay |
|---------------------------------------|---------------|----------------------------|
| executed: well, with an error, too long | 1           | 1, however often it was retried |
| cached, or shared with another call   | 1             | 0                          |
| refused, malformed                    | 0             | 0                          |
| cancelled, or its worker was lost     | 1             | 1: nobody knows how far it had come |
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from engine.budget import Account, Reservation
from engine.calls import ToolResult


class PathLedger:
    """The ledger of one path.

    >>> prompt = Account("prompt", limit=9)
    >>> ledger = PathLedger("path", limit=2, expenses=prompt, inherited=[ToolResult(name="search", text="Ulm")])
    >>> with ledger.reserve() as call:
    ...     call.settle(ToolResult(name="search", text="Ulm", is_cached=True))
    >>> ledger.reserve() is None, prompt.spent
    (True, 0)
    """

    def __init__(self, name: str, *, limit: int | None, expenses: Account, inherited: Iterable[ToolResult]) -> None:
        """`inherited` are results a branch began with: answers of this path, paid for by another one."""
        answered = sum(result.was_answered for result in inherited)
        self.answers = Account(name, limit=limit, spent=answered)
        self.expenses = expenses

    def reserve(self) -> "CallReservation | None":
        """Set one call aside; None, with nothing changed, where it might not be paid for."""
        answer = self.answers.reserve()
        if answer is None:
            return None
        expense = self.expenses.reserve()
        if expense is None:
            answer.cancel()
            return None
        return CallReservation(answer, expense)


class CallReservation:
    """Room for one call. Leaving it without having settled it, as when cancelled, pays in full."""

    def __init__(self, answer: Reservation, expense: Reservation) -> None:
        self._answer = answer
        self._expense = expense
        self._is_settled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._is_settled:
            self._pay(answers=1, executions=1)

    def settle(self, result: ToolResult) -> None:
        """Pay for what the call came to. Raises `BudgetError` the second time."""
        self._pay(answers=int(result.was_answered), executions=int(result.was_executed))

    def _pay(self, *, answers: int, executions: int) -> None:
        self._answer.settle(answers)
        self._expense.settle(executions)
        self._is_settled = True

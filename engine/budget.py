"""Hard budgets: reserve before you spend, settle after, and never overspend whatever fails in between.

An `Account` stands under a parent (path, prompt, cohort, run), and a reservation is taken in all of them or in none.
Tool calls and trajectories are counted the same way.
"""

from engine.errors import BudgetError


class Account:
    """`spent + reserved <= limit` at all times, here and in every account above.

    >>> run = Account("run", limit=3); path = Account("path", parent=run)
    >>> first = path.reserve(2)
    >>> path.reserve(2) is None          # the run has room for one
    True
    >>> first.settle(1); run.spent, run.reserved, run.left
    (1, 0, 2)
    """

    def __init__(self, name: str, *, limit: int | None = None, parent: "Account | None" = None, spent: int = 0) -> None:
        """`limit=None` counts without limiting. `spent` restores an account of this level only."""
        if limit is not None and limit < 0:
            raise BudgetError(f"{name}: a limit cannot be negative, got {limit}")
        self.name = name
        self.limit = limit
        self.parent = parent
        self.spent = spent
        self.reserved = 0

    @property
    def left(self) -> int | None:
        """Room under this account's limit and all above; None where nothing limits."""
        room = None if self.limit is None else self.limit - self.spent - self.reserved
        above = None if self.parent is None else self.parent.left
        return room if above is None else above if room is None else min(room, above)

    def reserve(self, amount: int = 1) -> "Reservation | None":
        """Set `amount` aside here and above; None, with nothing changed, where it does not fit."""
        if amount < 1:
            raise BudgetError(f"{self.name}: cannot reserve {amount}")
        left = self.left
        if left is not None and left < amount:
            return None
        for account in self.chain:
            account.reserved += amount
        return Reservation(self, amount)

    def record(self, amount: int) -> None:
        """Count, here and above, what was reserved and spent elsewhere."""
        for account in self.chain:
            account.spent += amount

    @property
    def chain(self) -> "list[Account]":
        """This account and all above it."""
        return [self, *(self.parent.chain if self.parent else [])]

    def __repr__(self) -> str:
        return f"Account({self.name}: {self.spent} spent, {self.reserved} reserved of {self.limit})"


class Reservation:
    """Room that is set aside until it is settled, exactly once."""

    def __init__(self, account: Account, amount: int) -> None:
        self._account = account
        self._amount = amount
        self._is_open = True

    def settle(self, spent: int) -> None:
        """Turn `spent` of the reservation into spending and give the rest back."""
        if not self._is_open:
            raise BudgetError(f"{self._account.name}: a reservation was settled twice")
        if not 0 <= spent <= self._amount:
            raise BudgetError(f"{self._account.name}: settled {spent} of {self._amount} reserved")
        self._is_open = False
        for account in self._account.chain:
            account.reserved -= self._amount
            account.spent += spent

    def cancel(self) -> None:
        """Give everything back; does nothing after `settle`."""
        if self._is_open:
            self.settle(0)

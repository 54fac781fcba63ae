"""Accounts: whatever is reserved, settled and cancelled, no account of a chain is ever overspent."""

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from engine.budget import Account, Reservation
from engine.errors import BudgetError

LIMITS = st.none() | st.integers(0, 8)


@dataclass
class Open:
    """A reservation as a naive ledger sees it."""

    reservation: Reservation
    names: list[str]
    amount: int


@given(
    run=LIMITS,
    prompts=st.lists(LIMITS, min_size=2, max_size=2),
    paths=st.lists(LIMITS, min_size=3, max_size=3),
    data=st.data(),
)
@settings(max_examples=150)
def test_no_account_is_ever_overspent_and_every_reservation_is_in_all_or_none(
    run: int | None, prompts: list[int | None], paths: list[int | None], data: st.DataObject
) -> None:
    top = Account("run", limit=run)
    middle = [Account(f"prompt{i}", limit=limit, parent=top) for i, limit in enumerate(prompts)]
    leaves = [Account(f"path{i}", limit=limit, parent=middle[i % 2]) for i, limit in enumerate(paths)]
    accounts = {account.name: account for account in [top, *middle, *leaves]}
    spent = dict.fromkeys(accounts, 0)
    pending: list[Open] = []

    for _ in range(data.draw(st.integers(1, 20))):
        if pending and data.draw(st.booleans()):
            entry = pending.pop(data.draw(st.integers(0, len(pending) - 1)))
            used = data.draw(st.integers(0, entry.amount))
            if data.draw(st.booleans()):
                entry.reservation.settle(used)
                for name in entry.names:
                    spent[name] += used
            else:
                entry.reservation.cancel()
                entry.reservation.cancel()
        else:
            account = data.draw(st.sampled_from(leaves))
            amount = data.draw(st.integers(1, 4))
            names = [a.name for a in account.chain]
            fits = all(
                accounts[name].limit is None
                or spent[name] + sum(e.amount for e in pending if name in e.names) + amount <= accounts[name].limit
                for name in names
            )
            reservation = account.reserve(amount)
            assert (reservation is not None) == fits
            if reservation is not None:
                pending.append(Open(reservation, names, amount))
        for name, account in accounts.items():
            assert account.spent == spent[name]
            assert account.reserved == sum(e.amount for e in pending if name in e.names)
            if account.limit is not None:
                assert account.spent + account.reserved <= account.limit
                assert account.left is not None
                assert 0 <= account.left <= account.limit - account.spent - account.reserved


def test_a_reservation_is_settled_exactly_once_and_never_beyond_itself() -> None:
    account = Account("run", limit=4)
    reservation = account.reserve(2)
    assert reservation is not None
    for wrong in (3, -1):
        with pytest.raises(BudgetError, match=f"run: settled {wrong} of 2 reserved"):
            reservation.settle(wrong)
    reservation.settle(1)
    with pytest.raises(BudgetError, match="run: a reservation was settled twice"):
        reservation.settle(1)
    reservation.cancel()
    assert (account.spent, account.reserved, account.left) == (1, 0, 3)


def test_what_an_account_begins_with_counts_on_its_own_level_only() -> None:
    run = Account("run", limit=10)
    prompt = Account("prompt", limit=5, parent=run, spent=2)
    assert (run.spent, prompt.spent) == (0, 2)
    assert prompt.left == 3
    assert prompt.reserve(4) is None


def test_nonsense_is_an_error_not_a_reservation() -> None:
    with pytest.raises(BudgetError, match="run: a limit cannot be negative, got -1"):
        Account("run", limit=-1)
    with pytest.raises(BudgetError, match="run: cannot reserve 0"):
        Account("run").reserve(0)
    assert Account("run", limit=0).reserve() is None
    assert Account("run").left is None

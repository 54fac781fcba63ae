"""Cohorts: every cohort of a run by its number, under the budgets of the run."""

from collections.abc import Mapping

from engine.budget import Account
from engine.cohort import Cohort
from engine.outlook import Outlook
from engine.rollout_config import RolloutConfig
from engine.run_state import CohortUse


class Cohorts:
    """Makes a cohort when its number is first asked for, and forgets it when its trees are gone."""

    def __init__(
        self,
        config: RolloutConfig,
        *,
        size: int,
        is_logical: bool = False,
        used: Mapping[int, CohortUse] | None = None,
    ) -> None:
        """`size` trees make a cohort; `used` says what finished trees of earlier processes took from the budgets."""
        self._config = config
        self._size = size
        self._is_logical = is_logical
        self._used = dict(used or {})
        self._leaves = Account("run", spent=sum(use.num_leaves for use in self._used.values()))
        spent = sum(use.num_calls for use in self._used.values())
        self._calls = Account("run", limit=config.budget.calls_per_run, spent=spent)
        self._outlook = Outlook() if config.order == "longest_expected" else None
        self._open: dict[int, Cohort] = {}

    def __getitem__(self, number: int) -> Cohort:
        if number not in self._open:
            self._open = {n: cohort for n, cohort in self._open.items() if not cohort.is_over}
            name, use, budget = f"cohort {number}", self._used.get(number, CohortUse()), self._config.budget
            self._open[number] = Cohort(
                number,
                size=self._size - use.num_trees,
                granting=self._config.granting,
                leaves=Account(name, limit=budget.leaves_per_cohort, parent=self._leaves, spent=use.num_leaves),
                tool_calls=Account(name, limit=budget.calls_per_cohort, parent=self._calls, spent=use.num_calls),
                is_logical=self._is_logical,
                num_ranked=use.num_ranked,
                outlook=self._outlook,
            )
        return self._open[number]

    @property
    def num_reserved(self) -> int:
        """Trajectories and calls that are set aside and not settled."""
        return self._leaves.reserved + self._calls.reserved

    def note(self, number: int, use: CohortUse) -> None:
        """What a cohort has used elsewhere, where it has not been asked for here yet."""
        self._used.setdefault(number, use)

    def seal(self) -> None:
        """No further tree will join any of them: the data ended."""
        for cohort in self._open.values():
            cohort.seal()

"""The bench of the sandbox: both arms run the same problems and check the answers; figures compare pairs."""

import pytest

from actors.bench import sandbox_bench
from actors.bench.sandbox_bench import by_subprocess, by_tool, equation, measured, trivial


def test_no_two_equations_are_alike() -> None:
    assert len({equation(number)[0] for number in range(2000)}) == 2000
    code, expected = equation(100)
    assert "x**2 - 10*x + 24" in code
    assert expected == "[4, 6]"


@pytest.mark.parametrize("run", [by_tool, by_subprocess])
def test_both_arms_run_what_is_asked_and_check_it(run: sandbox_bench.Runner) -> None:
    record = measured(run, trivial, num_callers=2, num_calls=4, seed=1)
    assert set(record) == {"calls_per_s", "p50_ms", "p95_ms"}
    assert min(record.values()) > 0
    with pytest.raises(ExceptionGroup):
        measured(run, lambda number: ("print(1)", "2"), num_callers=1, num_calls=1, seed=0)


def test_the_equations_have_the_solutions_that_are_expected() -> None:
    measured(by_tool, equation, num_callers=4, num_calls=8, seed=3)


def test_figures_compare_arms_that_ran_beside_each_other() -> None:
    def record(calls_per_s: float, p50_ms: float = 1.0) -> dict[str, float]:
        return {"calls_per_s": calls_per_s, "p50_ms": p50_ms, "p95_ms": 2.0}

    records = {
        "tool": [record(100), record(50)],
        "subprocess": [record(4), record(2)],
        "trivial": [record(9, 7.0), record(9, 9.0)],
    }
    assert sandbox_bench._figures(records, is_isolated=True) == {
        "speedup_vs_subprocess": 25.0,
        "calls_per_s": 75,
        "subprocess_calls_per_s": 3,
        "p50_ms": 8.0,
        "is_isolated": 1.0,
    }

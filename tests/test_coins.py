"""Coins: the same for the same names everywhere, uniform, and independent across names."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from engine.coins import coin, seed_of

NAMES = st.lists(st.integers(0, 2) | st.text("12", max_size=2), max_size=3).map(tuple)
"""From so few that names which look alike, such as 1, 2 and "12", often meet."""


def test_the_coins_of_a_run_never_change_between_releases() -> None:
    assert seed_of(0, "e0-r17", 3) == 8_415_559_198_483_803_074
    assert coin(0, "e0-r17", 3) == 0.9124167565676509


def test_another_process_draws_the_same_coin() -> None:
    code = "from engine.coins import coin; import sys; sys.stdout.write(repr(coin(7, 'e0-r1', 'fork', 2)))"
    drawn = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert float(drawn) == coin(7, "e0-r1", "fork", 2)


@given(seed=st.integers(), names=NAMES)
def test_coins_lie_in_the_unit_interval_and_seeds_fit_63_bits(seed: int, names: tuple[str | int, ...]) -> None:
    assert 0.0 <= coin(seed, *names) < 1.0
    assert 0 <= seed_of(seed, *names) < 2**63


@given(seeds=st.tuples(st.integers(0, 1), st.integers(0, 1)), one=NAMES, other=NAMES)
def test_different_names_or_runs_draw_different_seeds(
    seeds: tuple[int, int], one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    assert (seed_of(seeds[0], *one) == seed_of(seeds[1], *other)) == ((seeds[0], one) == (seeds[1], other))


def test_where_a_name_ends_and_whether_it_is_a_number_matter() -> None:
    seeds = {seed_of(0, 1), seed_of(0, "1"), seed_of(0, "a", "bc"), seed_of(0, "ab", "c"), seed_of(0, "abc")}
    assert len(seeds) == 5


def test_coins_are_uniform() -> None:
    coins = np.array([coin(0, "e0-r0", "fork", i) for i in range(10_000)])
    counts, _ = np.histogram(coins, bins=20, range=(0, 1))
    chi_square = float(((counts - 500) ** 2 / 500).sum())
    assert chi_square < 43.8  # 19 degrees of freedom: one sequence in a thousand lies above


def test_coins_of_neighbouring_names_are_independent() -> None:
    coins_NA = np.array(
        [[coin(0, row, "fork"), coin(0, row + 1, "fork"), coin(1, row, "fork")] for row in range(5_000)]
    )
    correlations = np.corrcoef(coins_NA, rowvar=False)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.05  # 3.5 standard errors

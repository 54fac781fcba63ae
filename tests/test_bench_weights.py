"""The weights bench: its arms publish what they say, and leave nothing behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.bench import weights_bench
from actors.bench.publishing import Publishing
from actors.runtime import base_for_weights


@pytest.fixture(scope="module")
def publishing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publishing]:
    folder = tmp_path_factory.mktemp("bench")
    yield Publishing(folder, hidden_size=256, num_layers=2, rounds=2)
    assert not (base_for_weights(0) / f"arpo-bench-{folder.name}").exists()


def test_the_bound_is_the_same_bytes(publishing: Publishing) -> None:
    record = publishing.save_file()
    assert record["gib_per_s"] * record["publish_s"] * 2**30 == pytest.approx(publishing.num_bytes)


def test_figures_are_those_of_the_contract() -> None:
    seen = {"publish_s": 0.2, "takeover_s": 0.1, "gib_per_s": 1.0}
    records = {
        "tp1": [seen],
        "tp2": [seen | {"publish_s": 0.5}],
        "pp2": [seen | {"publish_s": 0.3}],
        "save_file": [{"publish_s": 0.1}],
    }
    figures = weights_bench.figures(records)
    assert figures["publish_s"] == 0.2
    assert figures["gib_per_s"] == 1.0
    assert figures["fraction_of_bound"] == 0.5
    assert (figures["publish_s_tp2"], figures["publish_s_pp2"]) == (0.5, 0.3)


@pytest.mark.real
@pytest.mark.timeout(180)
@pytest.mark.parametrize("layout", [{}, {"tensor_parallel": 2}, {"pipeline_parallel": 2}], ids=["tp1", "tp2", "pp2"])
def test_every_layout_publishes_and_the_generator_takes_over(publishing: Publishing, layout: dict[str, int]) -> None:
    record = publishing.publish(**layout)
    assert record["mib"] == publishing.num_bytes / 2**20
    assert record["publish_s"] > 0
    assert record["takeover_s"] > 0
    assert record["gib_per_s"] == pytest.approx(publishing.num_bytes / 2**30 / record["publish_s"])


def test_the_bench_names_its_arms(tmp_path: Path) -> None:
    (bench,) = weights_bench.benches(tmp_path, is_quick=True)
    assert list(bench.arms) == ["tp1", "tp2", "pp2", "save_file"]

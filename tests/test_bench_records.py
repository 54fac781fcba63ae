"""Records of a bench: kept by arm, key and seed, so that an interrupted bench goes on and a changed arm begins anew."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from actors.bench import harness
from actors.bench.bench import Bench, Record, curve, measure
from actors.bench.page import page
from actors.bench.record_store import RecordStore
from engine.errors import ConfigError, DataError, LearnerError


class Runs:
    """Arms that only count; one of them may fail at its n-th run."""

    def __init__(self, *, fails_at: int = -1) -> None:
        self.begun: list[tuple[str, int]] = []
        self.num_prepared = 0
        self._fails_at = fails_at

    def arm(self, name: str) -> Callable[[int], Record]:
        def run(seed: int) -> Record:
            self.begun.append((name, seed))
            if len(self.begun) == self._fails_at:
                raise LearnerError("out of memory")
            return {"calls": float(10 * seed + len(name)), "success@0": 0.5}

        return run

    def prepare(self, say: Callable[[str], None]) -> None:
        say("once")
        self.num_prepared += 1

    def bench(self, *names: str, repetitions: int = 2, **more: object) -> Bench:
        return Bench(
            name="x",
            arms={name: self.arm(name) for name in names},
            repetitions=repetitions,
            figures=lambda records: {},
            keys=dict.fromkeys(names, "k1"),
            prepare=self.prepare,
            **more,  # pyright: ignore[reportArgumentType]
        )


def run(bench: Bench, store: RecordStore | None, lines: list[str] | None = None) -> dict[str, list[Record]]:
    return measure(bench, on_progress=(lambda line: None) if lines is None else lines.append, store=store)


def test_an_interrupted_bench_goes_on_behind_its_last_record(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    first = Runs(fails_at=3)
    with pytest.raises(LearnerError):
        run(first.bench("a", "bb"), store)
    assert first.begun == [("a", 0), ("bb", 0), ("a", 1)]
    again = Runs()
    lines: list[str] = []
    records = run(again.bench("a", "bb"), store, lines)
    assert again.begun == [("a", 1), ("bb", 1)]
    assert [record["calls"] for record in records["a"]] == [1.0, 11.0]
    assert [line.endswith("(kept)") for line in lines[1:]] == [True, True, False, False]
    whole = Runs()
    assert run(whole.bench("a", "bb"), store) == records
    assert (whole.begun, whole.num_prepared) == ([], 0), "where all is known, nothing is prepared either"


def test_an_arm_that_was_changed_is_measured_anew_and_the_others_are_not(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    run(Runs().bench("a", "bb"), store)
    again = Runs()
    run(replace(again.bench("a", "bb"), keys={"a": "k1", "bb": "k2"}), store)
    assert again.begun == [("bb", 0), ("bb", 1)]


def test_an_arm_without_a_key_is_never_kept(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for _ in range(2):
        runs = Runs()
        run(replace(runs.bench("a"), keys={}), store)
        assert runs.begun == [("a", 0), ("a", 1)]
    assert not list(tmp_path.iterdir())


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.put("a", key="k", seed=3, record={"calls": 1.0})
    (file,) = tmp_path.glob("*/*.json")
    file.write_text("{")
    with pytest.raises(DataError, match=r"seed3\.json"):
        store.get("a", key="k", seed=3)


@pytest.mark.parametrize("jobs", [1, 3])
def test_arms_take_turns_and_some_meet_only_the_first_seeds(jobs: int) -> None:
    runs = Runs()
    bench = runs.bench("a", "bb", "ccc", repetitions=3, limits={"bb": 1}, jobs=jobs)
    lines: list[str] = []
    records = run(bench, None, lines)
    turns = [("a", 0), ("bb", 0), ("ccc", 0), ("a", 1), ("ccc", 1), ("a", 2), ("ccc", 2)]
    assert sorted(runs.begun) == sorted(turns)
    assert [(line.split()[2].removesuffix(":"), int(line.split()[1][0]) - 1) for line in lines[1:]] == turns
    assert [record["calls"] for record in records["ccc"]] == [3.0, 13.0, 23.0]
    assert runs.num_prepared == 1


def test_where_a_run_fails_no_further_one_is_begun() -> None:
    runs = Runs(fails_at=1)
    with pytest.raises(LearnerError):
        run(runs.bench("a", repetitions=50, jobs=1), None)
    assert len(runs.begun) == 1


def test_where_one_of_several_runs_fails_the_others_are_ended() -> None:
    stopped = threading.Event()

    def fails(seed: int) -> Record:
        raise LearnerError("out of memory")

    def waits(seed: int) -> Record:
        assert stopped.wait(30), "nobody ended it"
        raise LearnerError("ended")

    bench = Bench(
        name="x",
        arms={"a": fails, "b": waits},
        repetitions=9,
        figures=lambda records: {},
        jobs=2,
        stop=stopped.set,
    )
    with pytest.raises(LearnerError, match="out of memory"):
        run(bench, None)


def test_points_of_curves_are_read_by_x_and_left_out_of_tables() -> None:
    record = {"success@10": 0.9, "success@2": 0.4, "successes@1": 7.0, "calls": 1.0}
    assert curve(record, "success") == [(2.0, 0.4), (10.0, 0.9)]
    lines: list[str] = []
    found = harness.report("x", [Runs().bench("a")], on_progress=lines.append)
    assert list(found.arms["a"].rows) == ["calls"]
    assert found.arms["a"].records[0]["success@0"] == 0.5
    assert "@" not in lines[-1]


def test_only_the_arms_that_are_named_run_and_a_strange_one_is_refused() -> None:
    benches = [Runs().bench("a", "bb"), Runs().bench("ccc")]
    assert harness.chosen(benches, ()) == benches
    assert [list(bench.arms) for bench in harness.chosen(benches, ["bb"])] == [["bb"]]
    with pytest.raises(ConfigError, match="no arm 'd': a, bb, ccc"):
        harness.chosen(benches, ["a", "d"])


def test_a_page_needs_nothing_but_itself_and_escapes_what_it_sets() -> None:
    found = harness.report("x<y", [Runs().bench("a&b", "c")], on_progress=lambda line: None)
    found = msgspec.structs.replace(found, figures={"ratio": 0.5}, skipped={"d": "no <GPU>"})
    text = page([found])
    assert "x&lt;y" in text
    assert "d was not run: no &lt;GPU&gt;." in text
    assert "<td>ratio</td><td>0.5</td>" in text
    assert text.count("<svg") == 1, "one plot for what both arms have"
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text

"""The prefix bench: its account agrees with brute force, its rollouts reach what they claim, and it finds old KV."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.bench import harness, prefix_bench
from actors.bench.bench import Bench, Record
from actors.bench.prefix_account import Reading, account
from actors.bench.prefix_bench import PrefixReuse, record
from actors.bench.prefix_log import Happening, Log, Received, RecordingGenerator, Sent, Updating
from actors.bench.prefix_materials import Materials, Size
from actors.bench.prefix_rollouts import Grown, grow
from actors.bench.prefix_servers import find_python
from engine.clock import run_virtual
from engine.errors import ConfigError
from engine.inference.embedded import EmbeddedConfig
from engine.inference.scripted import Script, ScriptedGenerator
from engine.types import Completion, FinishReason, GenerateRequest, SamplingParams, WeightRef
from tests.test_parity import SGLANG

TINY = Size(num_trees=4, paths=10, initial=3, num_generators=1, probe_tokens=4, question_words=30, passage_words=20)

# -- logs -------------------------------------------------------------------------------------------------------------


def request(name: str, prompt: Sequence[int]) -> GenerateRequest:
    return GenerateRequest(
        request_id=name, token_ids=np.array(prompt, np.int32), sampling=SamplingParams(max_new_tokens=9)
    )


def chunk(
    tokens: Sequence[int], *, versions: Sequence[int] | int = 0, cached: int = 0, reason: FinishReason = ""
) -> Completion:
    floats = np.zeros(len(tokens), np.float32)
    return Completion(
        request_id="",
        token_ids=np.array(tokens, np.int32),
        logprobs=floats,
        entropy_low=floats,
        entropy_high=floats,
        versions=np.broadcast_to(np.array(versions, np.int32), len(tokens)),
        finish_reason=reason,
        num_cached_tokens=cached,
    )


def read(log: Log, *, page_size: int = 1) -> list[Reading]:
    return account(log.happenings, page_sizes={"a": page_size, "b": page_size}).readings


def test_shareable_is_the_prompt_and_the_streamed_tokens_but_the_last() -> None:
    log = Log()
    parent = log.send("a", request("parent", [1, 2, 3]))
    log.receive(parent, chunk([4, 5, 6]))
    child = log.send("a", request("child", [1, 2, 3, 4, 5, 6, 7]))
    elsewhere = log.send("b", request("elsewhere", [1, 2, 3, 4]))
    log.receive(child, chunk([8], cached=3, reason="stop"))
    log.receive(elsewhere, chunk([8], reason="stop"))
    _, reading, other = read(log)
    assert (reading.shareable, reading.settled, reading.missed, reading.missed_of_running) == (5, 3, 2, 2)
    assert (other.shareable, other.claimed, other.missed) == (0, 0, 0)


def test_what_is_still_being_prefilled_is_claimed_and_not_shareable() -> None:
    log = Log()
    numbers = [log.send("a", request(name, [1, 2, 3])) for name in ("one", "two")]
    log.receive(numbers[0], chunk([4], reason="stop"))
    log.receive(numbers[1], chunk([4], reason="stop"))
    _, reading = read(log)
    assert (reading.shareable, reading.claimed, reading.missed, reading.twice) == (0, 2, 0, 2)


def test_the_last_token_of_a_prompt_is_computed_and_pages_are_whole() -> None:
    log = Log()
    for cached in (0, 4):
        log.receive(log.send("a", request("", [1, 2, 3, 4, 5, 6])), chunk([7], cached=cached, reason="stop"))
    assert [reading.shareable for reading in read(log)] == [0, 5]
    assert [reading.shareable for reading in read(log, page_size=2)] == [0, 4]
    assert [reading.missed for reading in read(log, page_size=2)] == [0, 0]


def test_old_kv_is_stale_and_what_a_retracted_request_computed_anew_is_not() -> None:
    log = Log()
    ended = log.send("a", request("ended", [1, 2, 3, 4]))
    log.receive(ended, chunk([5], reason="stop"))
    running = log.send("a", request("running", [6, 7]))
    log.receive(running, chunk([8]))
    log.update("a", 1, is_over=False)
    log.update("a", 1, is_over=True)
    log.receive(running, chunk([9, 9], versions=[0, 1]))
    for prompt in ([1, 2, 3, 4], [6, 7, 8, 9, 9]):
        log.receive(log.send("a", request("", prompt)), chunk([0], versions=1, cached=3, reason="stop"))
    *_, old, new = read(log)
    assert (old.shareable, old.stale) == (0, 3)
    assert (new.shareable, new.own, new.stale, new.missed_of_retracted, new.missed_of_running) == (4, 0, 0, 1, 0)


def test_what_is_in_flight_during_an_update_straddles_it() -> None:
    log = Log()
    before = log.send("a", request("before", [1, 2]))
    log.update("a", 1, is_over=False)
    during = log.send("a", request("during", [1, 2]))
    elsewhere = log.send("b", request("elsewhere", [1, 2]))
    log.update("a", 1, is_over=True)
    after = log.send("a", request("after", [1, 2]))
    for number in (before, during, elsewhere, after):
        log.receive(number, chunk([3], versions=1, reason="stop"))
    assert [reading.is_straddling for reading in read(log)] == [True, True, False, False]


# -- brute force ------------------------------------------------------------------------------------------------------

OPERATIONS = st.lists(st.tuples(st.integers(0, 7), *[st.integers(0, 5)] * 4), max_size=40)


def played(operations: list[tuple[int, int, int, int, int]]) -> list[Happening]:
    """A log that could have happened: prompts continue what was there before, and versions only go up."""
    log = Log()
    versions = {"a": 0, "b": 0}
    over = {"a": True, "b": True}
    tokens: dict[int, list[int]] = {}
    server_of: dict[int, str] = {}
    running: list[int] = []
    for kind, a, b, c, d in operations:
        server = "ab"[a % 2]
        if kind <= 2 or not tokens:
            base = tokens[b % len(tokens)][: 2 + 3 * c] if tokens and kind else []
            number = log.send(server, request("", [*base, d % 2, c % 2]))
            tokens[number] = [*base, d % 2, c % 2]
            server_of[number] = server
            running.append(number)
        elif kind <= 6 and running:
            number = running[b % len(running)]
            version = versions[server_of[number]]
            sampled = [(d + i) % 2 for i in range(c % 4)]
            ends = d > 3
            stamps = [version - (i == 0 and version > 0 and a > 4) for i in range(len(sampled))]
            log.receive(number, chunk(sampled, versions=stamps, cached=a, reason="stop" if ends else ""))
            tokens[number] += sampled
            if ends:
                running.remove(number)
        elif kind == 7:
            versions[server] += over[server]
            over[server] = not over[server]
            log.update(server, versions[server], is_over=over[server])
    return log.happenings


class Whole(NamedTuple):
    """A request, with everything that ever came of it."""

    at: int
    server: str
    prompt: list[int]
    chunks: list[tuple[int, Completion]]

    def until(self, end: int) -> list[tuple[int, Completion]]:
        return [(at, c) for at, c in self.chunks if at < end and c.token_ids.size]

    def tokens(self, end: int = sys.maxsize) -> list[int]:
        return self.prompt + [int(token) for _, c in self.until(end) for token in c.token_ids]

    @property
    def first(self) -> int:
        return self.until(sys.maxsize)[0][0]

    @property
    def version(self) -> int:
        return int(self.until(sys.maxsize)[0][1].versions[0])

    def is_ended(self, end: int) -> bool:
        return any(c.finish_reason for at, c in self.chunks if at < end)

    def in_kv(self, version: int, end: int, *, is_settled: bool) -> list[int]:
        of_version = [at for at, c in self.until(end) if c.versions[-1] == version]
        if not of_version:
            return []
        last_at, last = next((at, c) for at, c in self.until(end) if at == of_version[-1])
        if not is_settled or last.finish_reason:
            return self.tokens(last_at + 1)[:-1]
        return self.tokens(of_version[0])

    def is_retracted_to(self, version: int, updates: list[tuple[int, Updating]]) -> bool:
        """Whether it was sent before the update to this version."""
        return any(
            (u.server, u.version) == (self.server, version) and not u.is_over and self.at < i for i, u in updates
        )

    def claims(self, version: int, end: int, updates: list[tuple[int, Updating]]) -> bool:
        """Whether this one had begun by then to compute with this version."""
        if self.version == version:
            return self.at < end
        stamps = {int(v) for _, c in self.until(sys.maxsize) for v in c.versions}
        begun = [i for i, u in updates if (u.server, u.version, u.is_over) == (self.server, version, False)]
        return version in stamps and any(self.at < i < end for i in begun)


def alike(one: list[int], other: list[int]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


def reference(happenings: list[Happening], *, page_size: int) -> list[Reading]:
    """By definition: every request against every other one, at its time."""
    at = list(enumerate(happenings))
    chunks = [(i, h) for i, h in at if isinstance(h, Received)]
    wholes = {
        h.number: Whole(i, h.server, h.request.token_ids.tolist(), [(j, c.chunk) for j, c in chunks if c.number == n])
        for i, h in at
        if isinstance(h, Sent)
        for n in [h.number]
    }
    wholes = {number: whole for number, whole in wholes.items() if whole.until(sys.maxsize)}
    updates = [(i, h) for i, h in at if isinstance(h, Updating)]
    found: list[Reading] = []
    for number, one in sorted(wholes.items(), key=lambda item: item[1].first):
        others = [w for n, w in wholes.items() if n != number and w.server == one.server]

        def longest(prefixes: list[list[int]], prompt: list[int] = one.prompt) -> int:
            match = max((alike(prompt, prefix) for prefix in prefixes), default=0)
            return min(match, len(prompt) - 1) // page_size * page_size

        kv = [(o, o.in_kv(one.version, one.at, is_settled=False)) for o in others]
        possible = [o.tokens() for o in others if o.claims(one.version, one.first, updates)]
        reused = one.until(sys.maxsize)[0][1].num_cached_tokens
        mine = [(i, u) for i, u in updates if u.server == one.server]
        before = [u for i, u in mine if i < one.at]
        found.append(
            Reading(
                number=number,
                server=one.server,
                version=one.version,
                prompt=len(one.prompt),
                shareable=longest([prefix for _, prefix in kv]),
                settled=longest([o.in_kv(one.version, one.at, is_settled=True) for o in others]),
                own=longest([prefix for o, prefix in kv if not o.is_retracted_to(one.version, updates)]),
                claimed=longest([o.tokens()[:-1] for o in others if o.claims(one.version, one.at, updates)]),
                reused=reused,
                stale=max(reused - max((alike(one.prompt, prefix) for prefix in possible), default=0), 0),
                is_straddling=bool(before and not before[-1].is_over)
                or any(one.at < i < one.first and not u.is_over for i, u in mine),
            )
        )
    return found


@settings(max_examples=300, deadline=None)
@given(operations=OPERATIONS, page_size=st.integers(1, 3))
def test_the_account_is_what_brute_force_finds(
    operations: list[tuple[int, int, int, int, int]], page_size: int
) -> None:
    happenings = played(operations)
    found = account(happenings, page_sizes={"a": page_size, "b": page_size})
    assert found.readings == reference(happenings, page_size=page_size)


# -- recording --------------------------------------------------------------------------------------------------------


def test_a_recorder_notes_what_passes_by_and_changes_nothing() -> None:
    log = Log()
    generator = ScriptedGenerator(lambda _: Script(token_ids=[5, 6, 7]))
    recorder = RecordingGenerator(generator, name="a", log=log)

    async def main() -> list[int]:
        asked = msgspec.structs.replace(request("one", [1, 2]), stream_interval=2)
        tokens = [int(token) async for c in recorder.generate(asked) for token in c.token_ids]
        await recorder.update_weights(WeightRef(version=3, path=""), mode="retract")
        return tokens

    assert run_virtual(main()) == [5, 6, 7]
    kinds = [type(happening).__name__ for happening in log.happenings]
    assert kinds == ["Sent", "Received", "Received", "Updating", "Updating"]
    assert [h.is_over for h in log.happenings if isinstance(h, Updating)] == [False, True]


# -- the embedded arm -------------------------------------------------------------------------------------------------


def check_workload(found: Record) -> None:
    """The run is what the bench claims: branches, turns, an update with trees on both sides of it, a large cache."""
    assert found["fork_requests"] >= 2
    assert found["turn_requests"] >= 10
    assert found["sibling_requests"] >= TINY.num_trees
    assert found["updated_requests"] >= 2
    assert found["revisit_prompt_tokens"] > 40
    assert found["evicted_tokens"] == 0
    assert found["cache_share"] < 1
    assert found["shareable_tokens"] > 500


def test_the_embedded_engine_reads_all_that_is_shareable(tmp_path: Path) -> None:
    found = PrefixReuse(tmp_path, TINY).embedded(3)
    check_workload(found)
    assert found["reused_fraction"] == 1.0
    assert found["missed_tokens"] == found["twice_tokens"] == found["stale_tokens"] == 0


@pytest.mark.real
def test_a_cache_without_versions_is_found_out(tmp_path: Path) -> None:
    config = EmbeddedConfig(device="cpu", max_kv_tokens=TINY.max_kv_tokens, salt_by_version=False)
    grown: Grown = asyncio.run(grow(Materials(tmp_path, TINY), config, folder=tmp_path, seed=3))
    account_of = account(grown.log.happenings, page_sizes=dict.fromkeys(grown.servers, 1))
    found = record(grown, account_of, max_kv_tokens=TINY.max_kv_tokens)
    assert found["stale_tokens"] > 40


# -- the bench --------------------------------------------------------------------------------------------------------


def test_an_arm_that_is_skipped_is_named_on_the_way_and_in_the_report() -> None:
    lines: list[str] = []
    bench = Bench(
        name="x", arms={"here": lambda _: {"s": 1.0}}, repetitions=1, figures=lambda _: {}, skipped={"there": "no such"}
    )
    found = json.loads(msgspec.json.encode(harness.report("x", [bench], on_progress=lines.append)))
    assert found["skipped"] == {"there": "no such"}
    assert lines[0] == "x  there: skipped, no such"


def test_servers_are_started_by_the_interpreter_that_was_named_or_made(tmp_path: Path) -> None:
    made = tmp_path / ".venv-sglang" / "bin" / "python"
    assert find_python(None, checkout=tmp_path) is None
    made.parent.mkdir(parents=True)
    made.touch()
    assert find_python(None, checkout=tmp_path) == str(made)
    assert find_python(sys.executable, checkout=tmp_path) == sys.executable
    with pytest.raises(ConfigError, match=r"--sglang-python .*nowhere: no such program"):
        find_python(str(tmp_path / "nowhere"), checkout=tmp_path)


def test_the_fraction_is_of_all_repetitions_and_the_smaller_one_of_the_arms() -> None:
    def run(missed: float, fork_missed: float) -> Record:
        tokens = {"shareable_tokens": 100.0, "fork_shareable_tokens": 10.0}
        return {**tokens, "missed_tokens": missed, "fork_missed_tokens": fork_missed, "stale_tokens": 0.0}

    found = prefix_bench.figures({"embedded": [run(0.0, 0.0)], "sglang": [run(3.0, 1.0), run(1.0, 1.0)]})
    assert found["reused_fraction"] == found["sglang_reused_fraction"] == pytest.approx(0.98)
    assert found["sglang_fork_fraction"] == pytest.approx(0.9)
    assert found["embedded_reused_fraction"] == 1.0


@pytest.mark.real
@pytest.mark.timeout(240)
def test_sglang_reads_all_but_what_running_and_retracted_requests_hold(tmp_path: Path) -> None:
    assert SGLANG.python is not None
    found = PrefixReuse(tmp_path, TINY).sglang(3, python=SGLANG.python)
    print(found)
    check_workload(found)
    assert found["stale_tokens"] == 0
    explained = found["missed_of_running_tokens"] + found["missed_of_retracted_tokens"]
    assert found["missed_tokens"] - explained <= 0.001 * found["shareable_tokens"]
    assert found["reused_fraction"] > 0.9

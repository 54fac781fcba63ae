"""The journal on a disk that dies at any byte, and the fold that a resumed run starts from."""

import logging
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from engine import codec, journal
from engine.errors import JournalError
from engine.events import (
    AnyEvent,
    BatchTaken,
    Checkpointed,
    Evaluated,
    Forked,
    GroupFinished,
    GroupRefused,
    PathStarted,
    PromptAdmitted,
    RunFinished,
    RunStarted,
    TokensSampled,
    ToolFinished,
    ToolRequested,
)
from engine.journal import Journal
from engine.records import HEADER_SIZE, pack
from engine.run_state import RunState
from engine.types import Prompt, ToolCall, ToolResult


def prompt(name: str) -> Prompt:
    return Prompt(prompt_id=name, epoch=0, row=0, token_ids=np.arange(3, dtype=np.int32), question="", ground_truth="")


def admitted(name: str, *, index: int = 0, cohort: int = 0) -> PromptAdmitted:
    return PromptAdmitted(prompt_id=name, prompt=prompt(name), version=0, index=index, cohort=cohort)


def sampled(name: str, *tokens: int) -> TokensSampled:
    ids = np.array(tokens, np.int32)
    floats = ids.astype(np.float32)
    return TokensSampled(
        prompt_id=name,
        path=0,
        token_ids=ids,
        logprobs=-floats,
        entropy_low=floats,
        entropy_high=floats,
        versions=ids,
        finish_reason="stop",
    )


EVENTS: list[AnyEvent] = [
    RunStarted(run="r", config_digest="d"),
    admitted("a"),
    PathStarted(prompt_id="a", path=0),
    sampled("a", 5, 6, 7),
    ToolFinished(prompt_id="a", path=0, index=0, result=ToolResult(name="search", text="päge", duration_s=0.5)),
    Forked(prompt_id="a", path=0, child=1, length=4),
    GroupFinished(prompt_id="a", t=2.5),
]


def write(folder: Path, events: list[AnyEvent]) -> Path:
    with Journal(folder) as file:
        for event in events:
            file.append(event)
    return journal.segments(folder)[-1]


def same(one: list[AnyEvent], other: list[AnyEvent]) -> bool:
    return [codec.encode(event) for event in one] == [codec.encode(event) for event in other]


def test_events_come_back_as_they_were_with_their_arrays(tmp_path: Path) -> None:
    write(tmp_path, EVENTS)
    events = list(journal.read(tmp_path))
    assert same(events, EVENTS)
    assert [type(event) for event in events] == [type(event) for event in EVENTS]
    tokens = events[3]
    assert isinstance(tokens, TokensSampled)
    assert tokens.token_ids.dtype == np.int32
    assert tokens.logprobs.tolist() == [-5.0, -6.0, -7.0]


def test_each_process_writes_a_segment_of_its_own_and_they_are_read_in_order(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / "journal", [Checkpointed(step=number, version=0, path="")])
    assert [path.name for path in journal.segments(tmp_path / "journal")][:2] == ["000001.log", "000002.log"]
    (tmp_path / "journal" / "notes.log").write_text("not a segment")
    steps = [event.step for event in journal.read(tmp_path / "journal") if isinstance(event, Checkpointed)]
    assert steps == list(range(12))
    assert list(journal.read(tmp_path / "nowhere")) == []


def test_what_was_appended_is_there_before_the_journal_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path) as file:
        file.append(EVENTS[0])
        assert same(list(journal.read(tmp_path)), EVENTS[:1])
        file.sync()
    with pytest.raises(ValueError, match="closed"):
        file.append(EVENTS[0])


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_segment_cut_anywhere_gives_all_whole_records_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    path = write(folder, EVENTS)
    whole = path.read_bytes()
    ends = [0]
    for event in EVENTS:
        ends.append(ends[-1] + HEADER_SIZE + len(codec.encode(event)))
    assert ends[-1] == len(whole)
    cut = data.draw(st.integers(0, len(whole)))
    zeros = data.draw(st.sampled_from([0, 3, 64]))
    torn = whole[:cut] + b"\0" * zeros
    path.write_bytes(torn)
    # A later process goes on behind the tear.
    write(folder, [RunFinished()])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        events = list(journal.read(folder))
    # A record that ends in zeros is whole where zeros stand in their place.
    kept = sum(torn.startswith(whole[:end]) for end in ends) - 1
    assert same(events, [*EVENTS[:kept], RunFinished()])
    is_torn = torn != whole[: ends[kept]]
    assert [f"{path}: torn by a crash at byte {ends[kept]}" in m for m in caplog.messages] == [True] * is_torn


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_before_the_last_record_is_an_error_not_an_end(
    tmp_path: Path, position: int, bit: int
) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    path = write(folder, EVENTS)
    content = bytearray(path.read_bytes())
    last = len(content) - HEADER_SIZE - len(codec.encode(EVENTS[-1]))
    content[position % last] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"000001.log: the record at byte \d+ is damaged, and others follow it"):
        list(journal.read(folder))


def test_a_sound_record_that_is_no_event_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, EVENTS[:1])
    payload = b"\x81\xa1e\xa7Unknown"
    with path.open("ab") as file:
        file.write(pack(1, payload))
    with pytest.raises(JournalError, match=r"is not an event: Invalid value 'Unknown'"):
        list(journal.read(tmp_path))


def fold(*events: AnyEvent) -> RunState:
    state = RunState()
    for event in events:
        state.apply(event)
    return state


def test_the_fold_knows_what_is_growing_finished_taken_and_refused() -> None:
    grown = [PathStarted(prompt_id="a", path=0), sampled("a", 5), GroupFinished(prompt_id="a")]
    state = fold(admitted("a"), admitted("b", index=1), *grown)
    assert (list(state.trees), list(state.groups), state.num_admitted) == (["b"], ["a"], 2)
    state.apply(GroupRefused(prompt_id="b", reason="x"))
    assert (list(state.trees), list(state.admissions), state.num_refused) == ([], ["a"], 1)
    state.apply(BatchTaken(step=1, prompt_ids=("a",)))
    assert (state.step, list(state.groups), state.num_trained) == (1, [], 1)
    assert [group.prompt.prompt_id for group in state.batches[1]] == ["a"]
    state.apply(Checkpointed(step=1, version=1, path="c"))
    assert list(state.batches) == [1], "the only checkpoint may be torn"
    state.apply(Checkpointed(step=1, version=1, path="c"))
    assert list(state.batches) == [1], "written again, it is still the only one"
    state.apply(Checkpointed(step=3, version=3, path="d"))
    assert state.batches == {}, "what the older checkpoint holds is not trained again"
    assert [one.step for one in state.checkpoints] == [1, 3]


def test_the_fold_counts_what_a_cohort_has_used() -> None:
    result = ToolResult(name="search", text="x")
    call = ToolCall(name="search", arguments={})
    state = fold(
        admitted("a", cohort=3),
        PathStarted(prompt_id="a", path=0),
        sampled("a", 5),
        ToolRequested(prompt_id="a", path=0, call=call, index=0),
        ToolFinished(prompt_id="a", path=0, index=0, result=result),
        Forked(prompt_id="a", path=0, child=1, length=4),
        GroupFinished(prompt_id="a"),
        admitted("b", index=1, cohort=3),
        PathStarted(prompt_id="b", path=0),
    )
    use = state.used[3]
    assert (use.num_trees, use.num_leaves, use.num_calls) == (1, 2, 1)


def test_the_last_evaluated_step_is_remembered() -> None:
    assert fold(*(Evaluated(step=i, version=i, metrics={}) for i in range(4))).evaluated_step == 3


def test_events_that_cannot_follow_are_refused_by_name() -> None:
    with pytest.raises(JournalError, match="an event of a, which is not growing"):
        fold(PathStarted(prompt_id="a", path=0))
    with pytest.raises(JournalError, match="step 1 takes a, which is not a finished group"):
        fold(admitted("a"), BatchTaken(step=1, prompt_ids=("a",)))

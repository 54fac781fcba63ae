"""What SGLang streams becomes the same `Completion`s however it is cut into events; what it should not send, errors."""

import itertools
import json
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import GeneratorError, RequestRefusedError
from engine.inference.sglang_chunks import ChunkReader
from engine.types import Completion, FinishReason, GenerateRequest, SamplingParams, Version

VOCAB_SIZE = 6
NUM_PROMPT, NUM_CACHED = 9, 4
LENGTH = {"type": "length", "length": 24}


class Segment(NamedTuple):
    """What a server samples: for each token its id, the distribution it was drawn from, and the version."""

    token_ids: list[int]
    probabilities: list[list[float]]
    versions: list[Version]
    num_top: int = VOCAB_SIZE

    @property
    def size(self) -> int:
        return len(self.token_ids)

    def logprob(self, position: int, token: int) -> float | None:
        """As JSON has it: null is -inf."""
        probability = self.probabilities[position][token]
        return math.log(probability) if probability else None

    def scored(self, position: int) -> list[Any]:
        token = self.token_ids[position]
        return [self.logprob(position, token), token, None]

    def top(self, position: int) -> list[list[Any]]:
        best = sorted(range(VOCAB_SIZE), key=lambda token: -self.probabilities[position][token])
        return [[self.logprob(position, token), token, None] for token in best[: self.num_top]]

    def entropy(self, position: int) -> float:
        return -sum(p * math.log(p) for p in self.probabilities[position] if p)

    def event(
        self, start: int, end: int, *, is_incremental: bool = True, finish: dict[str, Any] | None = None, **meta: Any
    ) -> bytes:
        """The event that brings tokens start..end; a cumulative one repeats those before."""
        first = start if is_incremental else 0
        everything = {
            "id": "name",
            "finish_reason": finish,
            "prompt_tokens": NUM_PROMPT,
            "cached_tokens": NUM_CACHED,
            "completion_tokens": end,
            "weight_version": str(self.versions[end - 1]) if end else "0",
            "output_token_logprobs": [self.scored(position) for position in range(first, end)],
            "output_top_logprobs": [self.top(position) for position in range(first, end)],
        }
        if finish is not None:
            everything["weight_versions"] = self.spans()
        return json.dumps(
            {"text": "", "output_ids": self.token_ids[first:end], "meta_info": everything | meta}
        ).encode()

    def spans(self) -> list[dict[str, Any]]:
        borders = [0, *(n for n in range(1, self.size) if self.versions[n] != self.versions[n - 1]), self.size]
        return [
            {"version": str(self.versions[start]), "start": start, "end": end}
            for start, end in itertools.pairwise(borders)
            if start < end
        ]


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    size = draw(st.integers(0, 24))
    weights = st.lists(st.integers(0, 9), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE).filter(any)
    rows = [draw(weights) for _ in range(size)]
    return Segment(
        [draw(st.integers(0, VOCAB_SIZE - 1)) for _ in range(size)],
        [[weight / sum(row) for weight in row] for row in rows],
        sorted(draw(st.integers(0, 3)) for _ in range(size)),
        draw(st.integers(1, VOCAB_SIZE)),
    )


def certain(size: int) -> Segment:
    """Tokens 0, 1, 2, ... of version 0, drawn from even distributions."""
    return Segment([n % VOCAB_SIZE for n in range(size)], [[1 / VOCAB_SIZE] * VOCAB_SIZE] * size, [0] * size)


def reader(
    *,
    interval: int = 1,
    version: Version = 0,
    is_incremental: bool = True,
    is_mixed: Callable[[Version], bool] = lambda version: False,
) -> ChunkReader:
    request = GenerateRequest(
        request_id="r",
        token_ids=np.arange(NUM_PROMPT, dtype=np.int32),
        sampling=SamplingParams(max_new_tokens=24),
        stream_interval=interval,
    )
    return ChunkReader(
        request, version=version, vocab_size=VOCAB_SIZE, is_incremental=is_incremental, is_mixed=is_mixed
    )


def read(
    segment: Segment, borders: list[int], *, interval: int, is_incremental: bool, mixed_from: Version = 99
) -> list[Completion]:
    """The chunks of a segment whose events end at `borders`, from a server that had its first version."""
    reading = reader(
        interval=interval,
        version=segment.versions[0] if segment.size else 0,
        is_incremental=is_incremental,
        is_mixed=lambda version: version >= mixed_from,
    )
    chunks: list[Completion | None] = []
    for start, end in zip([0, *borders], borders, strict=False):
        assert not reading.is_ended
        chunks.append(reading.read(segment.event(start, end, is_incremental=is_incremental)))
    last = segment.event(borders[-1] if borders else 0, segment.size, is_incremental=is_incremental, finish=LENGTH)
    chunks.append(reading.read(last))
    assert reading.is_ended
    return [chunk for chunk in chunks if chunk is not None]


def joined(chunks: list[Completion], name: str) -> list[float]:
    return np.concatenate([getattr(chunk, name) for chunk in chunks]).tolist()


@given(segment=segments(), cuts=st.lists(st.integers(0, 24)), interval=st.integers(1, 8), mixed_from=st.integers(0, 4))
def test_however_a_segment_is_cut_into_events_its_chunks_join_to_the_same_arrays(
    segment: Segment, cuts: list[int], interval: int, mixed_from: int
) -> None:
    borders = sorted(cut for cut in cuts if cut <= segment.size)
    logprobs = [segment.logprob(n, token) for n, token in enumerate(segment.token_ids)]
    for is_incremental in (True, False):
        chunks = read(segment, borders, interval=interval, is_incremental=is_incremental, mixed_from=mixed_from)
        assert joined(chunks, "token_ids") == segment.token_ids
        assert joined(chunks, "logprobs") == [np.float32("-inf" if one is None else one) for one in logprobs]
        assert joined(chunks, "versions") == segment.versions
        low, high = joined(chunks, "entropy_low"), joined(chunks, "entropy_high")
        for n in range(segment.size):
            assert low[n] - 1e-5 <= segment.entropy(n) <= high[n] + 1e-5
            assert segment.num_top < VOCAB_SIZE or low[n] == high[n]
        assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]
        assert all(chunk.token_ids.size >= interval for chunk in chunks[:-1])
        assert [chunk.is_mixed for chunk in chunks] == [bool((chunk.versions >= mixed_from).any()) for chunk in chunks]
        later = [0] * (len(chunks) - 1)
        assert [chunk.num_cached_tokens for chunk in chunks] == [NUM_CACHED, *later]
        assert [chunk.num_prefilled_tokens for chunk in chunks] == [NUM_PROMPT - NUM_CACHED, *later]
        for chunk in chunks:
            assert {chunk.token_ids.dtype, chunk.versions.dtype} == {np.dtype(np.int32)}
            assert {chunk.logprobs.dtype, chunk.entropy_low.dtype, chunk.entropy_high.dtype} == {np.dtype(np.float32)}


@pytest.mark.parametrize("is_incremental", [True, False], ids=["incremental", "cumulative"])
def test_a_chunk_is_held_until_stream_interval_tokens_are_there(is_incremental: bool) -> None:
    chunks = read(certain(8), [1, 2, 3, 4, 5, 6, 7], interval=3, is_incremental=is_incremental)
    assert [chunk.token_ids.tolist() for chunk in chunks] == [[0, 1, 2], [3, 4, 5], [0, 1]]
    reading = reader(interval=3, is_incremental=is_incremental)
    assert reading.read(certain(2).event(0, 1, is_incremental=is_incremental)) is None
    assert reading.read(certain(2).event(1, 2, is_incremental=is_incremental)) is None


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ({"type": "stop", "matched": 5}, "stop"),
        ({"type": "stop", "matched": "</answer>"}, "stop"),
        ({"type": "length", "length": 24}, "length"),
        ({"type": "abort", "message": "Aborted by AbortReq.", "status_code": None, "err_type": None}, "aborted"),
    ],
)
def test_the_last_chunk_says_why_it_is_the_last(finish: dict[str, Any], reason: FinishReason) -> None:
    reading = reader(interval=2)
    assert reading.read(certain(1).event(0, 1)) is None
    assert not reading.is_ended
    chunk = reading.read(certain(2).event(1, 2, finish=finish))
    assert chunk is not None
    assert chunk.finish_reason == reason
    # The last token of an aborted request was not looked at: it may be a stop.
    assert chunk.token_ids.tolist() == ([0] if reason == "aborted" else [0, 1])
    assert reading.is_ended


def test_an_end_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(GeneratorError, match=r"^r: the server ended with 'boredom'$"):
        reader().read(certain(1).event(0, 1, finish={"type": "boredom"}))


@pytest.mark.parametrize("num_read", [0, 2, 3])
@pytest.mark.parametrize("is_incremental", [True, False], ids=["incremental", "cumulative"])
def test_one_that_is_aborted_while_it_waits_repeats_no_token(num_read: int, is_incremental: bool) -> None:
    """A request in the queue, behind a retract too, ends with its last token again and with all log-probabilities; what
    had not been sent yet comes in the same event."""
    segment = certain(3)
    reading = reader(interval=8, is_incremental=is_incremental)
    for end in range(1, num_read + 1):
        assert reading.read(segment.event(end - 1, end, is_incremental=is_incremental)) is None
    event = json.loads(segment.event(num_read, 3, finish={"type": "abort"}, is_incremental=is_incremental))
    if is_incremental:
        event["output_ids"].append(segment.token_ids[-1])
        everything = json.loads(segment.event(0, 3))["meta_info"]
        for key in ("output_token_logprobs", "output_top_logprobs"):
            event["meta_info"][key] += everything[key]
    for key in ("prompt_tokens", "cached_tokens"):
        del event["meta_info"][key]
    chunk = reading.read(json.dumps(event).encode())
    assert chunk is not None
    assert chunk.finish_reason == "aborted"
    num_tokens = 3 if num_read == 3 else 2  # as one that runs, of which the last new token is left out
    assert chunk.token_ids.tolist() == [0, 1, 2][:num_tokens]
    assert chunk.logprobs.tolist() == [np.float32(-math.log(VOCAB_SIZE))] * num_tokens
    # What was computed for it is known from what it had said before.
    assert chunk.num_prefilled_tokens == (NUM_PROMPT - NUM_CACHED if num_read else 0)


def test_one_that_is_aborted_before_its_first_token_has_none() -> None:
    event = json.loads(certain(0).event(0, 0, finish={"type": "abort", "message": "Abort in waiting queue"}))
    for key in ("prompt_tokens", "cached_tokens"):
        del event["meta_info"][key]
    chunk = reader().read(json.dumps(event).encode())
    assert chunk is not None
    assert (chunk.finish_reason, chunk.token_ids.size, chunk.entropy_high.size) == ("aborted", 0, 0)
    assert (chunk.num_cached_tokens, chunk.num_prefilled_tokens) == (0, 0), "nothing was computed for it"


def test_what_is_computed_for_one_that_is_aborted_in_its_prefill_counts() -> None:
    chunk = reader().read(certain(1).event(0, 1, finish={"type": "abort"}))
    assert chunk is not None
    assert chunk.token_ids.size == 0
    assert (chunk.num_cached_tokens, chunk.num_prefilled_tokens) == (NUM_CACHED, NUM_PROMPT - NUM_CACHED)


@pytest.mark.parametrize("is_incremental", [True, False], ids=["incremental", "cumulative"])
def test_spans_tell_tokens_of_one_event_apart(is_incremental: bool, caplog: pytest.LogCaptureFixture) -> None:
    segment = certain(5)._replace(versions=[1, 1, 1, 1, 2])
    chunks = read(segment, [2], interval=1, is_incremental=is_incremental)
    assert [chunk.versions.tolist() for chunk in chunks] == [[1, 1], [1, 1, 2]]
    assert not caplog.records


@pytest.mark.parametrize("is_incremental", [True, False], ids=["incremental", "cumulative"])
def test_tokens_of_an_event_between_two_versions_are_held_until_the_end_tells_them_apart(is_incremental: bool) -> None:
    segment = certain(9)._replace(versions=[1, 1, 1, 2, 2, 2, 2, 2, 2])
    chunks = read(segment, [1, 2, 4, 6, 8], interval=2, is_incremental=is_incremental)
    assert [chunk.versions.tolist() for chunk in chunks] == [[1, 1], [1, 2, 2, 2, 2, 2, 2]]


def test_even_a_single_token_is_in_doubt_behind_an_update() -> None:
    """It may have been sampled before, and sent behind it."""
    reading = reader(version=1)
    assert reading.read(certain(2).event(0, 1, weight_version="2")) is None
    assert reading.is_in_doubt
    chunk = reading.read(certain(3)._replace(versions=[1, 2, 2]).event(1, 3, finish={"type": "abort"}))
    assert chunk is not None
    assert chunk.versions.tolist() == [1, 2]


def test_what_is_in_doubt_when_a_request_ends_without_spans_is_no_answer() -> None:
    reading = reader(version=1, interval=4)
    assert reading.read(certain(4).event(0, 4, weight_version="2")) is None
    with pytest.raises(GeneratorError, match=r"^r: it ended, and nothing said which version is where$"):
        reading.read(certain(5).event(4, 5, finish=LENGTH, weight_versions=[], weight_version="2"))


def test_a_version_that_turns_out_to_have_been_another_is_told(caplog: pytest.LogCaptureFixture) -> None:
    reading = reader(version=7)
    reading.read(certain(3).event(0, 2, weight_version="7"))
    with caplog.at_level(logging.WARNING):
        reading.read(certain(3).event(2, 3, finish=LENGTH))
    assert [record.getMessage() for record in caplog.records] == ["r: 2 tokens were stamped with another version"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b"<html>", "an event that SGLang does not send: JSON is malformed"),
        (b'{"output_ids": ["a"]}', "an event that SGLang does not send: Expected `int`, got `str`"),
        (b'{"error": {"message": "\xff"}}', "an event that SGLang does not send: "),
        (b'{"error": "no object"}', "an event that SGLang does not send: Expected `object"),
        (certain(1).event(0, 1, weight_version="default"), "the server calls its weights 'default'"),
        (certain(1).event(0, 1, output_token_logprobs=[]), "1 tokens came with 0 log-probabilities and 1 lists"),
        (certain(1).event(0, 1, output_top_logprobs=[]), "1 tokens came with 1 log-probabilities and 0 lists"),
        (certain(1).event(0, 1, output_top_logprobs=[None]), "1 tokens came with 1 log-probabilities and 0 lists"),
        (certain(1).event(0, 1, output_token_logprobs=[[-1.0, 5, None]]), "1 tokens came with 1 log-probabilities"),
    ],
)
def test_an_event_that_cannot_be_used_is_an_error_with_the_requests_name(event: bytes, message: str) -> None:
    with pytest.raises(GeneratorError, match=f"^r: {message}") as caught:
        reader().read(event)
    assert not isinstance(caught.value, RequestRefusedError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("code", "kind"), [(400, RequestRefusedError), (500, GeneratorError), (503, GeneratorError)])
def test_an_error_in_the_stream_is_refused_for_good_only_where_the_code_says_so(
    code: int, kind: type[GeneratorError]
) -> None:
    error = {"message": "too long", "type": "invalid_request_error", "code": code, "retryable": False}
    finish = {"type": "abort", "message": "too long", "status_code": code, "err_type": "BadRequestError"}
    for event in (json.dumps({"error": error}).encode(), certain(0).event(0, 0, finish=finish)):
        with pytest.raises(GeneratorError, match=r"^r: too long$") as caught:
            reader().read(event)
        assert type(caught.value) is kind

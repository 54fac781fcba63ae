"""The embedded engine, step by step: what it computes, what it reuses, what it refuses, what it survives."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError, GeneratorError
from engine.inference.embedded import EmbeddedConfig
from engine.inference.embedded_engine import EmbeddedEngine
from engine.inference.tiny import make_tiny_model
from engine.types import Completion, GenerateRequest, Int32, SamplingParams, ToolSpec

VOCAB_SIZE = 96


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_tiny_model(path, vocab_size=VOCAB_SIZE, hidden_size=64, num_layers=2, init_std=0.3, max_positions=2048)
    return str(path)


def tokens(count: int, seed: int = 0) -> Int32:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, count).astype(np.int32)


def ask(name: str, token_ids: Int32, *, num_new: int = 16, interval: int = 16, **sampling: object) -> GenerateRequest:
    params = SamplingParams(max_new_tokens=num_new, **sampling)
    return GenerateRequest(request_id=name, token_ids=token_ids, sampling=params, stream_interval=interval)


def run(engine: EmbeddedEngine, *requests: GenerateRequest) -> dict[str, list[Completion]]:
    """Submit everything at once and step to the end."""
    for request in requests:
        engine.submit(request)
    return drain(engine)


def drain(engine: EmbeddedEngine) -> dict[str, list[Completion]]:
    chunks: dict[str, list[Completion]] = {}
    while engine.has_work:
        for chunk in engine.step():
            chunks.setdefault(chunk.request_id, []).append(chunk)
    return chunks


def sampled(chunks: Sequence[Completion]) -> Int32:
    return np.concatenate([chunk.token_ids for chunk in chunks])


def logprobs(chunks: Sequence[Completion]) -> np.ndarray:
    return np.concatenate([chunk.logprobs for chunk in chunks])


def entropies(chunks: Sequence[Completion]) -> np.ndarray:
    assert all(np.array_equal(chunk.entropy_low, chunk.entropy_high) for chunk in chunks)
    return np.concatenate([chunk.entropy_low for chunk in chunks])


def num_prefilled(chunks: Sequence[Completion]) -> int:
    return sum(chunk.num_prefilled_tokens for chunk in chunks)


def assert_no_slot_is_lost(engine: EmbeddedEngine) -> None:
    batching = engine._batching
    assert batching.rows.used.size == 0
    assert batching.radix.num_evictable == batching.radix.num_cached
    assert batching.pool.num_free + batching.radix.num_cached == batching.pool.num_slots


class Letters:
    """A tokenizer of one character a token, but for token 5, which is `</`, and 95, which is half a character."""

    vocab_size = VOCAB_SIZE
    eos_token_ids = (0,)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 32 for letter in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        special = {5: "</", 95: "\ufffd"}
        return "".join(special.get(token, chr(token + 32)) for token in token_ids)

    def apply_chat_template(self, messages: Sequence[dict[str, str]], *, tools: Sequence[ToolSpec] = ()) -> str:
        return "".join(message["content"] for message in messages)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_log_probabilities_and_entropies_over_several_turns_equal_those_of_transformers(
    kernels: str, model_path: str
) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    engine = EmbeddedEngine(EmbeddedConfig(kernels=kernels), model_path=model_path)
    path, marks, ours, spread = tokens(20), [], [], []
    for turn in range(3):
        chunks = run(engine, ask(f"turn-{turn}", path, num_new=12, temperature=0.8, seed=turn))[f"turn-{turn}"]
        marks += range(path.size, path.size + 12)
        ours.append(logprobs(chunks))
        spread.append(entropies(chunks))
        path = np.concatenate([path, sampled(chunks), tokens(9, seed=turn)])
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    ids = torch.from_numpy(path.astype(np.int64))
    with torch.no_grad():
        wanted = torch.log_softmax(model(ids[None]).logits[0] / 0.8, dim=-1)
    at = torch.tensor(marks)
    np.testing.assert_allclose(np.concatenate(ours), wanted[at - 1, ids[at]].numpy(), atol=1e-4)
    np.testing.assert_allclose(np.concatenate(spread), -(wanted.exp() * wanted).sum(-1)[at - 1].numpy(), atol=1e-4)


def test_a_request_is_the_same_alone_in_a_batch_and_from_the_cache(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(prefill_chunk=40), model_path=model_path)
    requests = [ask(f"r{i}", tokens(5 + 7 * i, seed=i), num_new=20, seed=i) for i in range(12)]
    together = run(engine, *requests)
    for request in requests:
        name = request.request_id
        again = run(engine, request)[name]
        alone = run(EmbeddedEngine(EmbeddedConfig(), model_path=model_path), request)[name]
        assert again[0].num_cached_tokens == request.token_ids.size - 1
        assert alone[0].num_cached_tokens == 0
        for other in (again, alone):
            assert sampled(other).tolist() == sampled(together[name]).tolist()
            np.testing.assert_allclose(logprobs(other), logprobs(together[name]), atol=1e-5)
    assert_no_slot_is_lost(engine)


def test_deterministic_results_are_equal_bit_by_bit(model_path: str) -> None:
    config = EmbeddedConfig(deterministic=True, prefill_chunk=33)
    engine = EmbeddedEngine(config, model_path=model_path)
    requests = [ask(f"r{i}", tokens(5 + 9 * i, seed=i), num_new=12, seed=i) for i in range(9)]
    together = run(engine, *requests)
    for request in requests:
        for other in (engine, EmbeddedEngine(config, model_path=model_path)):
            alone = run(other, request)[request.request_id]
            assert np.array_equal(logprobs(alone), logprobs(together[request.request_id]))
            assert np.array_equal(entropies(alone), entropies(together[request.request_id]))


def test_a_promise_of_determinism_that_cannot_be_kept_is_refused(model_path: str) -> None:
    with pytest.raises(ConfigError, match="deterministic needs the native kernels"):
        EmbeddedEngine(EmbeddedConfig(deterministic=True, kernels="torch"), model_path=model_path)


def test_chunks_have_the_interval_and_only_the_last_one_a_reason(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path)
    chunks = run(engine, ask("a", tokens(7), num_new=22, interval=5))["a"]
    assert [chunk.token_ids.size for chunk in chunks] == [5, 5, 5, 5, 2]
    assert [chunk.finish_reason for chunk in chunks] == ["", "", "", "", "length"]
    assert [chunk.num_prefilled_tokens for chunk in chunks] == [7, 0, 0, 0, 0]
    assert all(chunk.logprobs.dtype == np.float32 and chunk.versions.dtype == np.int32 for chunk in chunks)


def test_a_fork_of_a_running_request_prefills_only_what_is_new(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path)
    engine.submit(ask("parent", tokens(50), num_new=40, interval=8))
    chunks: list[Completion] = []
    while not chunks:
        chunks = engine.step()
    prefix = np.concatenate([tokens(50), chunks[0].token_ids])
    # The last streamed token is computed by nobody yet, or by the parent in this very step.
    fork = ask("fork", np.concatenate([prefix, tokens(3, seed=1)]), num_new=8, seed=1)
    got = run(engine, fork)
    assert got["fork"][0].num_cached_tokens == 57
    assert got["fork"][0].num_prefilled_tokens == 4
    assert sum(chunk.token_ids.size for chunk in got["parent"]) == 32
    alone = run(EmbeddedEngine(EmbeddedConfig(), model_path=model_path), fork)["fork"]
    np.testing.assert_allclose(logprobs(got["fork"]), logprobs(alone), atol=1e-5)
    assert_no_slot_is_lost(engine)


def test_a_tool_turn_prefills_only_the_tool_result(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path)
    path = tokens(60)
    first = run(engine, ask("one", path, num_new=16))["one"]
    path = np.concatenate([path, sampled(first), tokens(10, seed=2)])
    second = run(engine, ask("two", path, num_new=16))["two"]
    # Ten tokens of the result, and the last sampled one, whose successor nobody had asked for.
    assert (second[0].num_cached_tokens, second[0].num_prefilled_tokens) == (75, 11)
    statistics = engine.statistics()
    assert (statistics.num_prefilled_tokens, statistics.num_cached_tokens) == (71, 75)
    assert (statistics.num_requests, statistics.num_sampled_tokens) == (2, 32)


def test_requests_that_arrive_together_prefill_their_common_prompt_once(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(prefill_chunk=64), model_path=model_path)
    prompt = tokens(200)
    got = run(engine, *(ask(f"r{i}", prompt, seed=i) for i in range(8)))
    assert sorted(num_prefilled(chunks) for chunks in got.values()) == [1] * 7 + [200]
    assert len({sampled(chunks).tobytes() for chunks in got.values()}) == 8


def test_a_prefix_is_shared_within_its_scope_alone_cached_or_running(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path)
    prompt = tokens(64)

    def scoped(name: str, scope: str) -> GenerateRequest:
        return msgspec.structs.replace(ask(name, prompt), cache_scope=scope)

    together = run(engine, scoped("a0", "a"), scoped("a1", "a"), scoped("b0", "b"))
    assert [num_prefilled(together[name]) for name in ("a0", "a1", "b0")] == [64, 1, 64]
    later = run(engine, scoped("a2", "a"), scoped("c0", "c"))
    assert [num_prefilled(later[name]) for name in ("a2", "c0")] == [1, 64]
    assert_no_slot_is_lost(engine)


def test_stop_tokens_end_a_segment_and_are_kept(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path)
    free = sampled(run(engine, ask("free", tokens(9), num_new=30))["free"]).tolist()
    stop = free[11]
    chunks = run(engine, ask("held", tokens(9), num_new=30, stop_token_ids=(1000, stop)))["held"]
    assert sampled(chunks).tolist() == free[: free.index(stop) + 1]
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize("width", [1, 2, 4])
def test_stop_strings_end_a_segment_with_the_token_that_completes_them(width: int, model_path: str) -> None:
    tokenizer = Letters()
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path, tokenizer=tokenizer)
    free = sampled(run(engine, ask("free", tokens(9), num_new=40))["free"]).tolist()
    stop = tokenizer.decode(free[20 : 20 + width])
    end = next(n for n in range(1, 41) if stop in tokenizer.decode(free[:n]))
    chunks = run(engine, ask("held", tokens(9), num_new=40, stop=("never there", stop)))["held"]
    assert sampled(chunks).tolist() == free[:end]
    assert chunks[-1].finish_reason == "stop"


def test_a_stop_string_in_the_prompt_does_not_count(model_path: str) -> None:
    tokenizer = Letters()
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path, tokenizer=tokenizer)
    free = sampled(run(engine, ask("free", tokens(9), num_new=4))["free"]).tolist()
    stop = tokenizer.decode([int(tokens(9)[-1]), free[0]])
    chunks = run(engine, ask("held", tokens(9), num_new=4, stop=(stop,)))["held"]
    assert sampled(chunks).tolist() == free


def test_abort_returns_what_was_sampled_and_frees_everything(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(max_running=1), model_path=model_path)
    engine.submit(ask("running", tokens(30), num_new=50))
    engine.submit(ask("waiting", tokens(30, seed=1), num_new=50))
    for _ in range(4):
        engine.step()
    engine.abort("running")
    engine.abort("waiting")
    engine.abort("unknown")
    got = drain(engine)
    assert {name: chunks[-1].finish_reason for name, chunks in got.items()} == dict.fromkeys(got, "aborted")
    assert {name: sampled(chunks).size for name, chunks in got.items()} == {"running": 4, "waiting": 0}
    assert_no_slot_is_lost(engine)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask("long", tokens(90), num_new=11), "90 prompt tokens and 11 new ones can never fit into 100"),
        (ask("empty", tokens(0)), "needs a prompt"),
        (ask("none", tokens(3), num_new=0), "max_new_tokens >= 1"),
        (ask("alien", np.array([3, VOCAB_SIZE], dtype=np.int32)), r"token ids 3\.\.96 leave the vocabulary of 96"),
        (ask("cold", tokens(3), temperature=-1.0), "sampling.temperature=-1.0"),
        (ask("words", tokens(3), stop=("x",)), "need a tokenizer"),
    ],
)
def test_a_request_that_can_never_run_is_refused(request_: GenerateRequest, message: str, model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(max_kv_tokens=100), model_path=model_path)
    with pytest.raises(GeneratorError, match=message):
        engine.submit(request_)
    assert not engine.has_work


def test_an_id_in_flight_is_refused_and_may_be_used_again_afterwards(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path)
    engine.submit(ask("a", tokens(5)))
    with pytest.raises(GeneratorError, match="in flight"):
        engine.submit(ask("a", tokens(5)))
    drain(engine)
    engine.submit(ask("a", tokens(5)))


def test_requests_that_wait_are_admitted_by_precedence(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(max_running=1), model_path=model_path)
    for name, precedence in (("new", (1, -9.0)), ("short", (0, -1.0)), ("long", (0, -2.0)), ("short too", (0, -1.0))):
        engine.submit(msgspec.structs.replace(ask(name, tokens(20), num_new=3), precedence=precedence))
    assert list(drain(engine)) == ["long", "short", "short too", "new"]


def test_too_little_memory_preempts_and_changes_no_token(model_path: str) -> None:
    requests = [ask(f"r{i}", tokens(20, seed=i), num_new=60, interval=7, seed=i) for i in range(8)]
    roomy = run(EmbeddedEngine(EmbeddedConfig(), model_path=model_path), *requests)
    engine = EmbeddedEngine(EmbeddedConfig(max_kv_tokens=200), model_path=model_path)
    tight = run(engine, *requests)
    for name, chunks in roomy.items():
        assert sampled(tight[name]).tolist() == sampled(chunks).tolist()
        np.testing.assert_allclose(logprobs(tight[name]), logprobs(chunks), atol=1e-5)
        assert [chunk.token_ids.size for chunk in tight[name]] == [chunk.token_ids.size for chunk in chunks]
    assert max(num_prefilled(chunks) for chunks in tight.values()) > 20  # somebody was preempted and computed again
    assert engine.statistics().num_evicted_tokens > 0
    assert_no_slot_is_lost(engine)


def test_what_is_preempted_stays_cached_while_there_is_room(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(max_kv_tokens=100), model_path=model_path)
    for i in range(2):
        engine.submit(ask(f"r{i}", tokens(20, seed=i), num_new=60, seed=i))
    engine.step()
    assert engine.statistics().num_running == 2
    while engine.statistics().num_running == 2:
        engine.step()
    assert engine.statistics().num_waiting == 1
    assert engine._batching.radix.num_evictable > 0
    assert len(drain(engine)) == 2


def test_slots_given_up_for_cached_ones_are_not_read_again(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(max_kv_tokens=400), model_path=model_path)
    wanted = run(engine, ask("wanted", tokens(5), num_new=80))["wanted"]
    engine = EmbeddedEngine(EmbeddedConfig(max_kv_tokens=400), model_path=model_path)
    # Two requests sample the same tokens into slots of their own; the shorter one ends, and is cached.
    engine.submit(ask("long", tokens(5), num_new=80))
    engine.submit(ask("short", tokens(5), num_new=30))
    chunks: list[Completion] = []
    while not any(chunk.request_id == "short" and chunk.finish_reason for chunk in chunks):
        chunks += engine.step()
    # A fork of the longer one makes it share the cached slots, and others soon write to those that it gave up.
    engine.submit(ask("fork", np.concatenate([tokens(5), sampled(wanted)[:34], tokens(2)])))
    for i in range(5):
        engine.submit(ask(f"other-{i}", tokens(40, seed=50 + i), num_new=20))
    for name, more in drain(engine).items():
        chunks += more if name == "long" else []
    mine = [chunk for chunk in chunks if chunk.request_id == "long"]
    assert sampled(mine).tolist() == sampled(wanted).tolist()
    np.testing.assert_allclose(logprobs(mine), logprobs(wanted), atol=1e-5)


def test_a_request_as_large_as_the_pool_runs_alone(model_path: str) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(max_kv_tokens=64), model_path=model_path)
    got = run(engine, *(ask(f"r{i}", tokens(24, seed=i), num_new=40) for i in range(3)))
    assert [sampled(chunks).size for chunks in got.values()] == [40, 40, 40]
    assert_no_slot_is_lost(engine)


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, vocab_size=VOCAB_SIZE, num_layers=1, init_std=float("inf"))
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=str(tmp_path))
    engine.submit(ask("a", tokens(4)))
    with pytest.raises(GeneratorError, match="not finite"):
        drain(engine)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 3),  # which of four prefixes it begins with
        st.integers(1, 30),  # tokens of that prefix
        st.integers(0, 6),  # tokens of its own
        st.integers(1, 20),  # new tokens
        st.integers(0, 6),  # steps until the next arrival
        st.booleans(),  # aborted after those steps
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=25)
@given(arrivals=ARRIVALS, max_kv_tokens=st.integers(60, 140), prefill_chunk=st.integers(1, 40))
def test_whatever_arrives_ends_with_its_own_tokens_and_loses_no_slot(
    model_path: str, arrivals: list[tuple[int, int, int, int, int, bool]], max_kv_tokens: int, prefill_chunk: int
) -> None:
    config = EmbeddedConfig(max_kv_tokens=max_kv_tokens, max_running=4, prefill_chunk=prefill_chunk)
    engine = EmbeddedEngine(config, model_path=model_path)
    got: dict[str, list[Completion]] = {}
    asked: dict[str, GenerateRequest] = {}
    for i, (which, shared, own, num_new, num_steps, is_aborted) in enumerate(arrivals):
        prompt = np.concatenate([tokens(30, seed=which)[:shared], tokens(own, seed=100 + i)])
        asked[f"r{i}"] = ask(f"r{i}", prompt, num_new=num_new, interval=6, seed=i)
        engine.submit(asked[f"r{i}"])
        chunks = [chunk for _ in range(num_steps) for chunk in engine.step()]
        if is_aborted:
            engine.abort(f"r{i}")
        for chunk in chunks:
            got.setdefault(chunk.request_id, []).append(chunk)
    for name, chunks in drain(engine).items():
        got.setdefault(name, []).extend(chunks)
    assert_no_slot_is_lost(engine)
    reference = EmbeddedEngine(EmbeddedConfig(), model_path=model_path)
    for name, request in asked.items():
        alone = sampled(run(reference, request)[name])
        assert got[name][-1].finish_reason in ("length", "aborted")
        mine = sampled(got[name])
        assert mine.tolist() == alone[: mine.size].tolist()
        assert mine.size == alone.size or got[name][-1].finish_reason == "aborted"

"""Weight updates of the embedded engine in the middle of requests: retract, in_place, drain, and the salt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import GeneratorError
from engine.inference.embedded import EmbeddedConfig
from engine.inference.embedded_engine import EmbeddedEngine
from engine.inference.tiny import make_tiny_model
from engine.types import Completion, GenerateRequest, Int32, SamplingParams, UpdateMode, WeightRef

VOCAB_SIZE = 96
NUM_BEFORE = 10


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models of one shape whose weights have nothing in common."""
    folder = tmp_path_factory.mktemp("versions")
    for seed in (0, 1):
        make_tiny_model(
            folder / str(seed), vocab_size=VOCAB_SIZE, hidden_size=64, num_layers=2, init_std=0.3, seed=seed
        )
    return str(folder / "0"), str(folder / "1")


def tokens(count: int, seed: int = 0) -> Int32:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, count).astype(np.int32)


def ask(name: str, token_ids: Int32, *, num_new: int = 24, interval: int = 4) -> GenerateRequest:
    return GenerateRequest(
        request_id=name,
        token_ids=token_ids,
        sampling=SamplingParams(max_new_tokens=num_new, seed=7),
        stream_interval=interval,
    )


def reference_logprobs(path: str, token_ids: Int32) -> np.ndarray:
    """Log-probability of every token behind the first, by transformers, with nothing cached."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.from_numpy(token_ids.astype(np.int64))
    with torch.no_grad():
        table = torch.log_softmax(model(ids[None]).logits[0, :-1], dim=-1)
    return table.gather(1, ids[1:, None])[:, 0].numpy()


def run(engine: EmbeddedEngine) -> list[Completion]:
    chunks: list[Completion] = []
    while engine.has_work:
        chunks += engine.step()
    return chunks


def updated_midway(versions: tuple[str, str], mode: UpdateMode) -> tuple[EmbeddedEngine, list[Completion]]:
    """A request that had sampled ten tokens when version 1 came; all its chunks."""
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=versions[0])
    engine.submit(ask("a", tokens(30)))
    chunks = [chunk for _ in range(NUM_BEFORE) for chunk in engine.step()]
    while not engine.update_weights(WeightRef(version=1, path=versions[1]), mode=mode):
        chunks += engine.step()
    return engine, chunks + run(engine)


def joined(chunks: list[Completion], name: str) -> tuple[Int32, np.ndarray, list[int]]:
    mine = [chunk for chunk in chunks if chunk.request_id == name]
    return (
        np.concatenate([chunk.token_ids for chunk in mine]),
        np.concatenate([chunk.logprobs for chunk in mine]),
        [version for chunk in mine for version in chunk.versions.tolist()],
    )


def test_retract_prefills_again_and_every_token_is_exact_under_its_own_version(versions: tuple[str, str]) -> None:
    engine, chunks = updated_midway(versions, "retract")
    sampled, logprobs, stamped = joined(chunks, "a")
    assert stamped == [0] * NUM_BEFORE + [1] * (24 - NUM_BEFORE)
    path = np.concatenate([tokens(30), sampled])
    for version in (0, 1):
        wanted = reference_logprobs(versions[version], path)[29:]
        mine = np.array(stamped) == version
        np.testing.assert_allclose(logprobs[mine], wanted[mine], atol=1e-4)
    assert not any(chunk.is_mixed for chunk in chunks)
    # The prompt and nine sampled tokens were computed again; the tenth would have been computed anyway.
    assert [chunk.num_prefilled_tokens for chunk in chunks] == [30, 0, 39, 0, 0, 0]
    assert [chunk.token_ids.size for chunk in chunks] == [4, 4, 4, 4, 4, 4]
    assert engine.version == 1


def test_in_place_keeps_the_old_keys_and_says_so(versions: tuple[str, str]) -> None:
    engine, chunks = updated_midway(versions, "in_place")
    sampled, logprobs, stamped = joined(chunks, "a")
    assert stamped == [0] * NUM_BEFORE + [1] * (24 - NUM_BEFORE)
    assert [chunk.is_mixed for chunk in chunks] == [False, False, True, True, True, True]
    assert [chunk.num_prefilled_tokens for chunk in chunks] == [30, 0, 0, 0, 0, 0]
    wanted = reference_logprobs(versions[1], np.concatenate([tokens(30), sampled]))[29:]
    assert np.abs(logprobs - wanted)[NUM_BEFORE:].max() > 0.1
    # What it computed is not offered to anybody.
    engine.submit(ask("b", np.concatenate([tokens(30), sampled])))
    after = run(engine)
    assert after[0].num_cached_tokens == 0
    assert not any(chunk.is_mixed for chunk in after)


def test_a_retract_after_an_in_place_update_makes_the_next_chunk_pure(versions: tuple[str, str]) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=versions[0])
    engine.submit(ask("a", tokens(30)))
    chunks: list[Completion] = []
    for version, mode in ((1, "in_place"), (2, "retract")):
        for _ in range(6):
            chunks += engine.step()
        assert engine.update_weights(WeightRef(version=version, path=versions[version % 2]), mode=mode)
    chunks += run(engine)
    assert [chunk.is_mixed for chunk in chunks] == [False, True, True, False, False, False]


def test_a_running_mixed_request_is_not_forked_from(versions: tuple[str, str]) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=versions[0])
    engine.submit(ask("a", tokens(30)))
    engine.step()
    engine.update_weights(WeightRef(version=1, path=versions[1]), mode="in_place")
    engine.step()
    engine.submit(ask("b", tokens(30)))
    first = next(chunk for chunk in run(engine) if chunk.request_id == "b")
    assert (first.num_cached_tokens, first.is_mixed) == (0, False)


def test_drain_lets_what_runs_end_and_starts_nothing_else(versions: tuple[str, str]) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=versions[0])
    engine.submit(ask("a", tokens(30)))
    engine.step()
    engine.submit(ask("b", tokens(30, seed=1)))
    ref = WeightRef(version=1, path=versions[1])
    chunks: list[Completion] = []
    while not engine.update_weights(ref, mode="drain"):
        chunks += engine.step()
    assert {chunk.request_id for chunk in chunks} == {"a"}
    assert chunks[-1].finish_reason == "length"
    chunks += run(engine)
    assert set(joined(chunks, "a")[2]) == {0}
    assert set(joined(chunks, "b")[2]) == {1}


@pytest.mark.parametrize("mode", ["retract", "in_place", "drain"])
def test_no_request_after_an_update_reads_an_old_prefix(mode: UpdateMode, versions: tuple[str, str]) -> None:
    engine, chunks = updated_midway(versions, mode)
    path = np.concatenate([tokens(30), joined(chunks, "a")[0]])
    engine.submit(ask("b", path))
    sampled, logprobs, _ = joined(run(engine), "b")
    wanted = reference_logprobs(versions[1], np.concatenate([path, sampled]))[path.size - 1 :]
    np.testing.assert_allclose(logprobs, wanted, atol=1e-4)


def test_without_the_salt_old_keys_give_wrong_log_probabilities(versions: tuple[str, str]) -> None:
    """The stale-KV error that `salt_by_version` prevents: nats, where exact reuse gives 1e-6."""
    errors: dict[bool, float] = {}
    for is_salted in (True, False):
        engine = EmbeddedEngine(EmbeddedConfig(salt_by_version=is_salted), model_path=versions[0])
        engine.submit(ask("old", tokens(30)))
        run(engine)
        engine.update_weights(WeightRef(version=1, path=versions[1]), mode="retract")
        engine.submit(ask("new", tokens(30)))
        chunks = run(engine)
        assert chunks[0].num_cached_tokens == (0 if is_salted else 29)
        sampled, logprobs, _ = joined(chunks, "new")
        wanted = reference_logprobs(versions[1], np.concatenate([tokens(30), sampled]))[29:]
        errors[is_salted] = float(np.abs(logprobs - wanted).max())
    assert errors[True] < 1e-4
    assert errors[False] > 0.5


def test_old_prefixes_are_the_first_to_be_evicted_after_an_update(versions: tuple[str, str]) -> None:
    engine = EmbeddedEngine(EmbeddedConfig(max_kv_tokens=130), model_path=versions[0])
    engine.submit(ask("old", tokens(30)))
    run(engine)
    engine.update_weights(WeightRef(version=1, path=versions[1]), mode="retract")
    for seed in (1, 2, 1):
        engine.submit(ask(f"new-{seed}", tokens(30, seed=seed)))
        chunks = run(engine)
    assert engine.statistics().num_evicted_tokens > 0
    assert chunks[0].num_cached_tokens == 29


def test_refused_weights_leave_the_old_ones_and_the_request(versions: tuple[str, str], tmp_path: Path) -> None:
    make_tiny_model(tmp_path, vocab_size=VOCAB_SIZE, hidden_size=64, num_layers=2, intermediate_size=100)
    engine = EmbeddedEngine(EmbeddedConfig(), model_path=versions[0])
    engine.submit(ask("a", tokens(30)))
    chunks = [chunk for _ in range(NUM_BEFORE) for chunk in engine.step()]
    with pytest.raises(GeneratorError, match=r"version 1 refused: .* the model wants"):
        engine.update_weights(WeightRef(version=1, path=str(tmp_path)), mode="retract")
    _, logprobs, stamped = joined(chunks + run(engine), "a")
    assert set(stamped) == {0}
    engine.submit(ask("b", tokens(30)))
    np.testing.assert_allclose(joined(run(engine), "b")[1], logprobs, atol=1e-5)

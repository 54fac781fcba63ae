"""The embedded generator on a real event loop: streams, early ends, updates, errors."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from engine.config import decode
from engine.errors import ConfigError, GeneratorError
from engine.inference.embedded import EmbeddedConfig, EmbeddedGenerator
from engine.inference.embedded_engine import EmbeddedEngine
from engine.inference.tiny import make_tiny_model
from engine.interfaces import Generator
from engine.types import Completion, GenerateRequest, Int32, SamplingParams, WeightRef

VOCAB_SIZE = 96


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_tiny_model(path, vocab_size=VOCAB_SIZE, hidden_size=64, num_layers=2, init_std=0.3)
    return str(path)


def tokens(count: int, seed: int = 0) -> Int32:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, count).astype(np.int32)


def ask(name: str, *, num_new: int = 24, prompt: Int32 | None = None) -> GenerateRequest:
    return GenerateRequest(
        request_id=name,
        token_ids=tokens(20) if prompt is None else prompt,
        sampling=SamplingParams(max_new_tokens=num_new),
        stream_interval=4,
    )


async def collect(generator: Generator, request: GenerateRequest) -> list[Completion]:
    return [chunk async for chunk in generator.generate(request)]


def test_streams_give_what_the_engine_gives(model_path: str) -> None:
    async def main() -> list[list[Completion]]:
        async with EmbeddedGenerator(EmbeddedConfig(), model_path=model_path) as generator:
            requests = (ask(f"r{i}", prompt=tokens(10 + i, seed=i)) for i in range(5))
            return await asyncio.gather(*(collect(generator, request) for request in requests))

    engine = EmbeddedEngine(EmbeddedConfig(), model_path=model_path)
    for i, chunks in enumerate(asyncio.run(main())):
        engine.submit(ask(f"r{i}", prompt=tokens(10 + i, seed=i)))
        wanted: list[Completion] = []
        while engine.has_work:
            wanted += engine.step()
        assert [chunk.request_id for chunk in chunks] == [f"r{i}"] * 6
        assert [chunk.token_ids.tolist() for chunk in chunks] == [chunk.token_ids.tolist() for chunk in wanted]
        assert chunks[-1].finish_reason == "length"


def test_closing_a_stream_early_aborts_its_request_and_frees_its_id(model_path: str) -> None:
    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(), model_path=model_path) as generator:
            async with aclosing(generator.generate(ask("a", num_new=3000))) as stream:
                async for _ in stream:
                    break
            # The id is free at once, and the new stream sees nothing of the old one.
            again = await collect(generator, ask("a", num_new=6, prompt=tokens(5, seed=3)))
            assert [chunk.token_ids.size for chunk in again] == [4, 2]
            statistics = await generator.statistics()
            assert (statistics.num_running, statistics.num_requests) == (0, 2)
            assert statistics.num_sampled_tokens < 3000

    asyncio.run(main())


def test_abort_ends_the_stream_with_what_was_sampled(model_path: str) -> None:
    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(), model_path=model_path) as generator:
            chunks: list[Completion] = []
            async for chunk in generator.generate(ask("a", num_new=3000)):
                chunks.append(chunk)
                await generator.abort("a")
            await generator.abort("a")
            assert chunks[-1].finish_reason == "aborted"
            assert all(chunk.finish_reason == "" for chunk in chunks[:-1])

    asyncio.run(main())


def test_updates_are_applied_in_order_and_stamped_from_then_on(model_path: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, vocab_size=VOCAB_SIZE, hidden_size=64, num_layers=2, init_std=0.3, seed=1)

    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(), model_path=model_path) as generator:
            chunks: list[Completion] = []
            first = asyncio.Event()

            async def read() -> None:
                async for chunk in generator.generate(ask("a", num_new=400)):
                    chunks.append(chunk)
                    first.set()

            running = asyncio.create_task(read())
            await first.wait()
            await asyncio.gather(
                generator.update_weights(WeightRef(version=1, path=str(tmp_path)), mode="retract"),
                generator.update_weights(WeightRef(version=2, path=model_path), mode="in_place"),
                generator.update_weights(WeightRef(version=3, path=str(tmp_path)), mode="drain"),
            )
            assert (await generator.statistics()).version == 3
            await running
            stamped = [version for chunk in chunks for version in chunk.versions.tolist()]
            assert sorted(stamped) == stamped
            assert stamped[-1] == 2
            after = await collect(generator, ask("b"))
            assert {version for chunk in after for version in chunk.versions.tolist()} == {3}

    asyncio.run(main())


def test_refused_weights_reach_their_caller_and_nobody_else(model_path: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(), model_path=model_path) as generator:
            running = asyncio.create_task(collect(generator, ask("a")))
            with pytest.raises(GeneratorError, match=r"holds no .safetensors file"):
                await generator.update_weights(WeightRef(version=1, path=str(tmp_path)), mode="retract")
            assert (await running)[-1].finish_reason == "length"

    asyncio.run(main())


def test_a_failing_step_reaches_every_open_stream_and_every_later_call(model_path: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, vocab_size=VOCAB_SIZE, hidden_size=64, num_layers=2, init_std=float("inf"))

    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(), model_path=model_path) as generator:
            streams = [asyncio.create_task(collect(generator, ask(name, num_new=2000))) for name in "ab"]
            await generator.update_weights(WeightRef(version=1, path=str(tmp_path)), mode="retract")
            for result in await asyncio.gather(*streams, return_exceptions=True):
                assert isinstance(result, GeneratorError)
                assert "version 1 give logits that are not finite" in str(result)
            with pytest.raises(GeneratorError, match="not finite"):
                await collect(generator, ask("c"))
            with pytest.raises(GeneratorError, match="not finite"):
                await generator.update_weights(WeightRef(version=2, path=model_path), mode="retract")

    asyncio.run(main())


def test_leaving_the_generator_ends_open_streams(model_path: str) -> None:
    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(), model_path=model_path) as generator:
            first = asyncio.Event()

            async def read() -> None:
                async for _ in generator.generate(ask("a", num_new=3000)):
                    first.set()

            running = asyncio.create_task(read())
            await first.wait()
        with pytest.raises(GeneratorError, match="closed"):
            await running
        with pytest.raises(GeneratorError, match="not open"):
            await collect(generator, ask("b"))

    asyncio.run(main())


def test_an_impossible_request_is_refused_before_it_is_queued(model_path: str) -> None:
    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(max_kv_tokens=30), model_path=model_path) as generator:
            with pytest.raises(GeneratorError, match="can never fit"):
                await collect(generator, ask("a"))
            assert len(await collect(generator, ask("a", num_new=10))) == 3

    asyncio.run(main())


def test_two_requests_of_one_id_are_refused(model_path: str) -> None:
    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(), model_path=model_path) as generator:
            results = await asyncio.gather(*(collect(generator, ask("a")) for _ in range(2)), return_exceptions=True)
            assert sum(isinstance(result, GeneratorError) for result in results) == 1

    asyncio.run(main())


def test_a_configuration_error_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"\$.max_kv_tokens"):
        decode({"max_kv_tokens": 0}, EmbeddedConfig, source="test")


def test_a_device_that_is_not_there_is_a_configuration_error(model_path: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")

    async def main() -> None:
        async with EmbeddedGenerator(EmbeddedConfig(device="cuda"), model_path=model_path):
            pass

    with pytest.raises(ConfigError, match="cuda"):
        asyncio.run(main())

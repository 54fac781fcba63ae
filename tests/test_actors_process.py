"""Actors in processes of their own: who dies is heard with the end of its log, and nobody outlives the parent."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from actors.cluster import LocalCluster
from actors.entering import enter_all
from actors.messages import StartGenerator, StartLearner
from actors.process import actor_process
from actors.remote import RemoteGenerator
from actors.wire import Caller
from engine.errors import DataError, GeneratorError, LearnerError, StalledError
from engine.inference.embedded import EmbeddedConfig
from engine.inference.tiny import make_tiny_model
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.types import GenerateRequest, SamplingParams
from learner.config import LearnerConfig

pytestmark = [pytest.mark.real, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_word_tokenizer(folder, words=["who", "is", "it"])
    vocab_size = load_tokenizer(folder).vocab_size
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    make_tiny_model(folder, vocab_size=vocab_size, max_positions=100_000, **sizes)
    return str(folder)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@asynccontextmanager
async def generator(model: str, log: Path, *, start_timeout_s: float = 60.0) -> AsyncGenerator[Caller, None]:
    start = StartGenerator(name="generator-0", config=EmbeddedConfig(max_kv_tokens=100_000), model_path=model)
    async with actor_process(
        "generator-0", start, kind=GeneratorError, log=log, threads=1, start_timeout_s=start_timeout_s
    ) as caller:
        yield caller


def endless() -> GenerateRequest:
    return GenerateRequest(
        request_id="a",
        token_ids=np.array([1], np.int32),
        sampling=SamplingParams(max_new_tokens=90_000),
        stream_interval=1,
    )


def test_a_child_that_dies_fails_its_open_calls_with_its_exit_code_and_the_end_of_its_log(
    model: str, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "generator-0.log"

    async def main() -> None:
        async with generator(model, log) as caller:
            remote = RemoteGenerator(caller)
            await remote.open()
            stream = remote.generate(endless())
            await anext(stream)
            with log.open("a") as file:
                file.write("the last words\n")
            (child,) = children()
            child.send_signal(signal.SIGKILL)
            with pytest.raises(GeneratorError) as caught:
                async for _ in stream:
                    pass
            said = str(caught.value)
            assert said.startswith("generator-0 is gone: exit code -9; the end of ")
            assert said.endswith("\n  the last words")
            with pytest.raises(GeneratorError, match="exit code -9"):
                await remote.statistics()

    asyncio.run(main())
    assert children() == []


def test_leaving_ends_a_child_that_is_in_the_middle_of_its_work(model: str, tmp_path: Path) -> None:
    async def main() -> psutil.Process:
        async with generator(model, tmp_path / "log") as caller:
            remote = RemoteGenerator(caller)
            await remote.open()
            stream = remote.generate(endless())
            await anext(stream)
            (child,) = children()
        with pytest.raises(GeneratorError, match="is gone"):
            await anext(stream)
        return child

    child = asyncio.run(main())
    assert not child.is_running()


def test_a_child_ends_by_itself_when_its_parent_is_shot(model: str, tmp_path: Path) -> None:
    """The parent gets no chance to close anything: the kernel closes the socket for it."""
    code = f"""
import asyncio
from pathlib import Path
from actors.messages import StartGenerator
from actors.process import actor_process
from engine.errors import GeneratorError
from engine.inference.embedded import EmbeddedConfig

async def main():
    start = StartGenerator(name="generator-0", config=EmbeddedConfig(), model_path={model!r})
    async with actor_process(
        "g", start, kind=GeneratorError, log=Path({str(tmp_path / "log")!r}), threads=1, start_timeout_s=60
    ):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        (child,) = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert psutil.wait_procs([child], timeout=20)[1] == []


def test_what_a_child_refuses_at_its_start_is_the_error_here_and_it_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(DataError, match=r"^generator-0: .*nowhere"):
            async with generator(str(tmp_path / "nowhere"), tmp_path / "log"):
                pass

    asyncio.run(main())
    assert children() == []


def test_a_child_that_does_not_come_up_is_named_and_ended(model: str, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(StalledError, match=r"generator-0 did not start within 0.05 s; see .*log"):
            async with generator(model, tmp_path / "log", start_timeout_s=0.05):
                pass

    asyncio.run(main())
    assert children() == []


def test_one_rank_that_cannot_start_ends_the_start_of_all(model: str, tmp_path: Path) -> None:
    """Rank 1 would wait for rank 0 until its deadline, which is far away."""

    async def main() -> None:
        cluster = LocalCluster(logs=tmp_path, threads=1, start_timeout_s=600.0)
        good = StartLearner(
            config=LearnerConfig(dtype="float32", data_parallel=2),
            model_path=model,
            weights_dir=str(tmp_path),
            rank=1,
            world_size=2,
            init_method="tcp://127.0.0.1:1",
        )
        bad = StartGenerator(name="fails", config=EmbeddedConfig(), model_path=str(tmp_path / "nowhere"))
        actors = [
            ("waits", cluster.actor("waits", good, kind=LearnerError)),
            ("fails", cluster.actor("fails", bad, kind=GeneratorError)),
        ]
        async with AsyncExitStack() as stack:
            with pytest.raises(DataError, match="nowhere"):
                async with asyncio.timeout(45):
                    await enter_all(actors, stack)

    asyncio.run(main())
    assert children() == []

"""A supervised generator: lost ones are started again, with the run's weights before the first request."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from engine.clock import run_virtual
from engine.errors import GeneratorError, GeneratorLostError, StalledError
from engine.faults import FaultyGenerator
from engine.inference.router import Router
from engine.inference.scripted import Script, ScriptedGenerator
from engine.inference.supervised import BEGIN_S, LOOK_S, Start, SupervisedGenerator, watched
from engine.interfaces import Generator
from engine.types import Completion, GenerateRequest, SamplingParams, UpdateMode, WeightRef


def request(name: str = "r", *, num_tokens: int = 8) -> GenerateRequest:
    return GenerateRequest(
        request_id=name,
        token_ids=np.array([1], np.int32),
        sampling=SamplingParams(max_new_tokens=num_tokens),
        affinity_key=name,
        stream_interval=1,
    )


def weights(version: int) -> WeightRef:
    return WeightRef(version=version, path=f"v{version}")


class Backend(ScriptedGenerator):
    """A scripted server that notes its updates."""

    def __init__(self, script: Script) -> None:
        super().__init__(lambda request: script)
        self.updates: list[tuple[int, UpdateMode]] = []

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        self.updates.append((ref.version, mode))
        await super().update_weights(ref, mode=mode)


class Starts:
    """Starts of one generator: what lived, in order, and which starts fail."""

    def __init__(self, *, start_s: float = 5.0, fails: tuple[int, ...] = ()) -> None:
        self.lives: list[FaultyGenerator] = []
        self.backends: list[Backend] = []
        self.num_open = 0
        self._start_s = start_s
        self._fails = fails

    @asynccontextmanager
    async def __call__(self) -> AsyncGenerator[Generator, None]:
        await asyncio.sleep(self._start_s)
        number = len(self.lives)
        backend = Backend(Script(token_ids=[7] * 8, token_s=1.0))
        life = FaultyGenerator(backend, lambda request: "")
        self.lives.append(life)
        self.backends.append(backend)
        if number in self._fails:
            raise GeneratorError(f"start {number} fails")
        self.num_open += 1
        try:
            yield life
        finally:
            self.num_open -= 1


def starts_of(kind: type[Backend], lives: list[Backend]) -> Start:
    """Each start is another one of these, which is in `lives` then."""

    @asynccontextmanager
    async def start() -> AsyncGenerator[Generator, None]:
        lives.append(kind(Script(token_ids=[7] * 8, token_s=1.0)))
        yield lives[-1]

    return start


async def collect(generator: SupervisedGenerator | Router, asked: GenerateRequest) -> list[Completion]:
    return [chunk async for chunk in generator.generate(asked)]


def test_a_lost_generator_comes_back_with_the_weights_of_the_run() -> None:
    starts = Starts()

    async def main() -> None:
        async with SupervisedGenerator("g", starts) as generator:
            await generator.update_weights(weights(3), mode="in_place")
            starts.lives[0].is_lost = True
            with pytest.raises(GeneratorLostError, match="nobody answers"):
                await collect(generator, request())
            with pytest.raises(GeneratorLostError, match="g is lost"):
                await collect(generator, request())
            await asyncio.sleep(10.0)
            chunks = await collect(generator, request())
            assert {int(v) for chunk in chunks for v in chunk.versions} == {3}
            assert starts.backends[1].updates == [(3, "retract")]
            assert (generator.num_starts, starts.num_open) == (2, 1)

    run_virtual(main())
    assert starts.num_open == 0


def test_weights_published_while_it_starts_are_there_before_the_first_request() -> None:
    starts = Starts()

    async def main() -> None:
        async with SupervisedGenerator("g", starts) as generator:
            starts.lives[0].is_lost = True
            # Whoever publishes need not wait for it, nor know.
            await generator.update_weights(weights(1), mode="drain")
            await asyncio.sleep(3.0)
            await generator.update_weights(weights(2), mode="drain")
            await asyncio.sleep(10.0)
            chunks = await collect(generator, request())
            assert {int(v) for chunk in chunks for v in chunk.versions} == {2}

    run_virtual(main())


def test_weights_published_while_it_takes_older_ones_are_there_before_it_is_opened() -> None:
    """Opening takes a moment, in which whoever publishes must not believe that nobody is there."""

    class Slow(Backend):
        async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
            await asyncio.sleep(5.0)
            await super().update_weights(ref, mode=mode)

        async def open(self) -> None:
            await asyncio.sleep(1.0)

    lives: list[Backend] = []

    async def main() -> None:
        async with SupervisedGenerator("g", starts_of(Slow, lives)) as generator:
            await generator.update_weights(weights(1), mode="drain")
            generator._lose(lives[0], GeneratorLostError("killed"))  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(2.0)  # it is there again, and takes version 1
            await generator.update_weights(weights(2), mode="drain")
            chunks = await collect(generator, request())
            assert {int(v) for chunk in chunks for v in chunk.versions} == {2}
            assert [version for version, _ in lives[1].updates] == [1, 2]

    run_virtual(main())


def test_one_whose_new_weights_never_come_is_started_again() -> None:
    lives: list[Backend] = []

    class Deaf(Backend):
        async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
            if len(lives) == 2:
                await asyncio.Event().wait()
            await super().update_weights(ref, mode=mode)

    async def main() -> None:
        async with SupervisedGenerator("g", starts_of(Deaf, lives)) as generator:
            await generator.update_weights(weights(1), mode="drain")
            generator._lose(lives[0], GeneratorLostError("killed"))  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(BEGIN_S + 10.0)
            assert len(lives) == 3
            assert len(await collect(generator, request())) == 8

    run_virtual(main())


def test_a_start_that_fails_at_anything_is_tried_again() -> None:
    """A machine that is out of memory raises what it likes."""
    starts = 0

    @asynccontextmanager
    async def start() -> AsyncGenerator[Generator, None]:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise OSError(12, "Cannot allocate memory")
        yield Backend(Script(token_ids=[7] * 8, token_s=1.0))

    async def main() -> None:
        async with SupervisedGenerator("g", start) as generator:
            life = generator._lives.current  # pyright: ignore[reportPrivateUsage]
            assert life is not None
            generator._lose(life, GeneratorLostError("killed"))  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(10.0)
            assert starts == 3
            assert len(await collect(generator, request())) == 8

    run_virtual(main())


def test_counters_go_on_over_all_lives() -> None:
    starts = Starts()

    async def main() -> None:
        async with SupervisedGenerator("g", starts) as generator:
            await collect(generator, request())
            assert (await generator.statistics()).num_sampled_tokens == 8
            starts.lives[0].is_lost = True
            assert (await generator.statistics()).num_sampled_tokens == 8
            await asyncio.sleep(10.0)
            await collect(generator, request())
            assert (await generator.statistics()).num_sampled_tokens == 16

    run_virtual(main())


def test_a_first_start_that_fails_is_the_callers_error() -> None:
    async def main() -> None:
        async with SupervisedGenerator("g", Starts(fails=(0,))):
            raise AssertionError("never up")

    with pytest.raises(GeneratorError, match="start 0 fails"):
        run_virtual(main())


def test_it_is_given_up_after_so_many_lives_in_vain_and_only_then() -> None:
    starts = Starts(fails=(1, 2, 4, 5, 6))

    async def main() -> None:
        async with SupervisedGenerator("g", starts, restart_limit=3) as generator:
            starts.lives[0].is_lost = True
            await generator.statistics()
            await asyncio.sleep(60.0)  # two starts fail, the third one serves
            await collect(generator, request())
            starts.lives[3].is_lost = True
            await generator.statistics()
            await asyncio.sleep(600.0)
            assert len(starts.lives) == 7, "three more, and no other one"
            with pytest.raises(GeneratorLostError, match="start 6 fails"):
                await collect(generator, request())

    run_virtual(main())


def test_a_loss_that_only_others_meet_is_seen_and_what_served_only_them_was_not_in_vain() -> None:
    starts = Starts()

    async def main() -> None:
        async with SupervisedGenerator("g", starts, restart_limit=1) as generator, watched([generator]):
            for number in range(4):
                chunks = [chunk async for chunk in starts.lives[number].generate(request())]
                assert len(chunks) == 8
                await asyncio.sleep(2 * LOOK_S)
                starts.lives[number].is_lost = True
                await asyncio.sleep(20.0)
            assert generator.num_starts == 5
            assert (await generator.statistics()).num_sampled_tokens == 4 * 8

    run_virtual(main())
    assert starts.num_open == 0


def test_a_life_that_ends_before_it_has_sampled_is_one_in_vain() -> None:
    starts = Starts()

    async def main() -> None:
        async with SupervisedGenerator("g", starts, restart_limit=3) as generator:
            for _ in range(10):
                starts.lives[-1].is_lost = True
                await generator.statistics()
                await asyncio.sleep(60.0)
            assert len(starts.lives) == 4

    run_virtual(main())


def test_leaving_ends_a_start_that_is_under_way() -> None:
    starts = Starts(start_s=5.0)

    async def main() -> None:
        async with SupervisedGenerator("g", starts) as generator:
            starts.lives[0].is_lost = True
            await generator.statistics()
            await asyncio.sleep(2.0)

    run_virtual(main())
    assert starts.num_open == 0


def test_requests_wait_while_every_generator_is_lost_and_go_on_when_one_is_back() -> None:
    starts = [Starts(start_s=30.0), Starts(start_s=50.0)]

    async def main() -> None:
        async with (
            SupervisedGenerator("a", starts[0]) as first,
            SupervisedGenerator("b", starts[1]) as second,
        ):
            router = Router([first, second])
            for one in starts:
                one.lives[0].is_lost = True
            begun = asyncio.get_running_loop().time()
            chunks = await asyncio.gather(*(collect(router, request(f"r{number}")) for number in range(20)))
            assert all(one[-1].finish_reason == "stop" for one in chunks)
            waited = asyncio.get_running_loop().time() - begun
            assert 30.0 < waited < 60.0

    run_virtual(main())


def test_a_router_says_so_when_nobody_comes_back() -> None:
    starts = Starts(fails=tuple(range(1, 50)))

    async def main() -> None:
        async with SupervisedGenerator("g", starts) as generator:
            router = Router([generator], patience_s=100.0)
            starts.lives[0].is_lost = True
            with pytest.raises(GeneratorLostError, match="no generator has answered for 100 s: g did not start again"):
                async with asyncio.timeout(200.0):
                    await collect(router, request())

    run_virtual(main())


def test_a_stalled_start_is_a_failed_one() -> None:
    """Starts have deadlines of their own, and say `StalledError`."""

    starts = Starts()

    @asynccontextmanager
    async def start() -> AsyncGenerator[Generator, None]:
        if len(starts.lives) == 1:
            starts.lives.append(starts.lives[0])
            raise StalledError("not up within 5 s")
        async with starts() as generator:
            yield generator

    async def main() -> None:
        async with SupervisedGenerator("g", start) as generator:
            starts.lives[0].is_lost = True
            await generator.statistics()
            await asyncio.sleep(60.0)
            assert (await collect(generator, request()))[-1].finish_reason == "stop"

    run_virtual(main())

"""The wire: calls and answers interleave, errors keep their type, and an actor that goes away fails every open call."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.hosting import GeneratorAnswers
from actors.messages import Abort, Answer, AnyAnswer, Call, Chunk, Done, Failed, GetStatistics, Publish, Score
from actors.remote import RemoteGenerator, RemoteTrainer
from actors.wire import StreamCaller, error_of, failure_of, read_call, write_frame
from engine import errors
from engine.errors import ArpoError, DataError, GeneratorError, GeneratorLostError, LearnerError
from engine.inference.scripted import Script, ScriptedGenerator
from engine.types import Completion, GenerateRequest, SamplingParams, WeightRef

Reply = Callable[[AnyAnswer, bool], None]
Actor = Callable[[Call, Reply], Awaitable[None]]
"""Answers one call; each runs as a task of its own, as in `actors.host`."""


@asynccontextmanager
async def connected(actor: Actor) -> AsyncGenerator[StreamCaller, None]:
    """A caller, and an actor at the other end of a socket pair in the same loop."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    their_reader, their_writer = await asyncio.open_connection(sock=theirs)

    async def serve() -> None:
        async with asyncio.TaskGroup() as tasks:
            while (call := await read_call(their_reader)) is not None:
                number = call.number

                def reply(body: AnyAnswer, is_last: bool, number: int = number) -> None:
                    write_frame(their_writer, Answer(number=number, body=body, is_last=is_last))

                tasks.create_task(actor(call, reply))
        their_writer.close()

    async def receive(caller: StreamCaller) -> None:
        await caller.receive()
        caller.lose("it went home")

    caller = StreamCaller("actor", reader, writer)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve())
        tasks.create_task(receive(caller))
        try:
            yield caller
        finally:
            writer.close()
            serving.cancel()
            their_writer.close()


def generate(name: str, *, tokens: int = 8) -> GenerateRequest:
    return GenerateRequest(
        request_id=name,
        token_ids=np.array([1, 2], np.int32),
        sampling=SamplingParams(max_new_tokens=tokens),
        stream_interval=1,
    )


def chunk(name: str, *tokens: int) -> Chunk:
    ids = np.array(tokens, np.int32)
    floats = ids.astype(np.float32)
    return Chunk(
        completion=Completion(
            request_id=name, token_ids=ids, logprobs=floats, entropy_low=floats, entropy_high=floats, versions=ids
        )
    )


def generator_actor(generator: ScriptedGenerator) -> Actor:
    answers = GeneratorAnswers(generator)

    async def actor(call: Call, reply: Reply) -> None:
        async def send(body: AnyAnswer, is_last: bool) -> None:
            reply(body, is_last)

        try:
            await answers(call.body, send)
        except ArpoError as error:
            reply(failure_of(error), True)

    return actor


@given(order=st.lists(st.integers(0, 3), max_size=30))
@settings(max_examples=40)
def test_answers_of_many_calls_interleave_in_any_order(order: list[int]) -> None:
    """Each stream gets its own answers, in its own order, whatever the others get in between."""
    waiting: dict[str, Reply] = {}

    async def actor(call: Call, reply: Reply) -> None:
        assert isinstance(call.body, Abort)
        waiting[call.body.request_id] = reply
        if len(waiting) == 4:
            for place, stream in enumerate(order):
                waiting[str(stream)](chunk(str(stream), place), False)
            for closing in waiting.values():
                closing(Done(), True)

    async def read(caller: StreamCaller, name: str) -> list[int]:
        places: list[int] = []
        async for answer in caller.stream(Abort(request_id=name), GeneratorError):
            if isinstance(answer, Chunk):
                assert answer.completion.request_id == name
                places.append(int(answer.completion.token_ids[0]))
        return places

    async def main() -> list[list[int]]:
        async with connected(actor) as caller:
            return list(await asyncio.gather(*(read(caller, str(i)) for i in range(4))))

    expected = [[place for place, stream in enumerate(order) if stream == i] for i in range(4)]
    assert asyncio.run(main()) == expected


def test_a_generator_over_the_wire_is_the_generator() -> None:
    async def main() -> None:
        scripted = ScriptedGenerator(lambda r: Script(token_ids=[7, 8, 9], entropies=[0.5, 1.0, 1.5]))
        async with connected(generator_actor(scripted)) as caller:
            remote = RemoteGenerator(caller)
            await remote.open()
            one, two = await asyncio.gather(*(collect(remote, generate(name)) for name in "ab"))
            local = [c async for c in ScriptedGenerator(lambda r: Script(token_ids=[7, 8, 9])).generate(generate("a"))]
            for chunks in (one, two):
                assert [c.token_ids.tolist() for c in chunks] == [c.token_ids.tolist() for c in local]
                assert [c.finish_reason for c in chunks] == ["", "", "stop"]
                assert np.concatenate([c.entropy_low for c in chunks]).tolist() == [0.5, 1.0, 1.5]
            await remote.update_weights(WeightRef(version=4, path=""), mode="retract")
            assert (await remote.statistics()).version == 4
            assert (await collect(remote, generate("c")))[0].versions.tolist() == [4]

    asyncio.run(main())


async def collect(generator: RemoteGenerator, request: GenerateRequest) -> list[Completion]:
    return [chunk async for chunk in generator.generate(request)]


class Watched(ScriptedGenerator):
    """Says when a request begins and when it is over."""

    def __init__(self, script: Script) -> None:
        super().__init__(lambda request: script)
        self.began: asyncio.Queue[str] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        self.began.put_nowait(request.request_id)
        try:
            async for chunk in super().generate(request):
                yield chunk
        finally:
            self.ended.put_nowait(request.request_id)


def test_a_reader_that_leaves_a_silent_generator_does_not_wait_for_it() -> None:
    """One that is stopped, or cut off, answers nothing, not even an abort."""

    async def silent(call: Call, reply: Reply) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with connected(silent) as caller:
            remote = RemoteGenerator(caller, abort_s=0.05)
            reading = asyncio.create_task(collect(remote, generate("r", tokens=8)))
            await asyncio.sleep(0)
            reading.cancel()
            done, _ = await asyncio.wait([reading], timeout=10.0)
            assert done

    asyncio.run(main())


def test_leaving_a_stream_early_aborts_the_request_at_the_other_end() -> None:
    async def main() -> None:
        scripted = Watched(Script(token_ids=[1] * 1000, token_s=0.005))
        async with connected(generator_actor(scripted)) as caller:
            remote = RemoteGenerator(caller)
            await remote.open()
            stream = remote.generate(generate("closed", tokens=1000))
            await anext(stream)
            await stream.aclose()
            assert await scripted.ended.get() == "closed"

            reading = asyncio.create_task(collect(remote, generate("cancelled", tokens=1000)))
            while await scripted.began.get() != "cancelled":
                pass
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert await scripted.ended.get() == "cancelled"
            assert (await scripted.statistics()).num_sampled_tokens < 1000

    asyncio.run(main())


def test_an_error_at_the_other_end_is_the_same_error_here_with_the_actors_name() -> None:
    async def main() -> None:
        scripted = ScriptedGenerator(lambda r: Script(token_ids=[1, 2], fails_after=1))
        async with connected(generator_actor(scripted)) as caller:
            remote = RemoteGenerator(caller)
            with pytest.raises(GeneratorLostError, match="it has not the weights of the run yet"):
                await collect(remote, generate("a"))
            await remote.open()
            with pytest.raises(GeneratorError, match=r"^actor: scripted failure of a$"):
                await collect(remote, generate("a"))
            with pytest.raises(GeneratorError, match="a generator does not know Publish"):
                await caller.call(Publish(), LearnerError)

    asyncio.run(main())


@pytest.mark.parametrize("kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, ArpoError)])
def test_every_error_of_the_tree_crosses_with_its_type(kind: type[ArpoError]) -> None:
    error = error_of(failure_of(kind("what and where")), name="learner-0")
    assert type(error) is kind
    assert str(error) == "learner-0: what and where"


def test_an_error_that_this_side_does_not_know_is_an_error_still() -> None:
    for name in ("ZeroDivisionError", "boundary", "annotations", "NoSuchThing"):
        error = error_of(Failed(kind=name, message="m"), name="a")
        assert type(error) is ArpoError


def test_every_open_call_and_every_later_one_fails_when_the_actor_goes_away() -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def silent(call: Call, reply: Reply) -> None:
            asked.set()
            await asyncio.Event().wait()

        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        caller = StreamCaller("learner-0", reader, writer)
        open_calls = [
            asyncio.create_task(caller.call(GetStatistics(), GeneratorError)),
            asyncio.create_task(caller.call(Publish(), LearnerError)),
        ]
        await asyncio.sleep(0)
        theirs.close()
        await caller.receive()
        caller.lose("exit code -9")
        caller.lose("a second reason")
        for call, kind in zip(open_calls, (GeneratorError, LearnerError), strict=True):
            with pytest.raises(kind, match=r"^learner-0 is gone: exit code -9$"):
                await call
        with pytest.raises(DataError, match="learner-0 is gone: exit code -9"):
            await caller.call(Publish(), DataError)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    asyncio.run(main())


def test_a_frame_that_ends_in_the_middle_is_the_end() -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"\x05\x00\x00\x00ab")
        reader.feed_eof()
        assert await read_call(reader) is None

    asyncio.run(main())


def test_all_ranks_get_every_call_and_one_that_fails_fails_it_at_once() -> None:
    """The other rank waits in a collective for ever: nobody may wait for it."""
    seen: list[str] = []

    def rank(name: str, *, fails: bool) -> Actor:
        async def actor(call: Call, reply: Reply) -> None:
            seen.append(name)
            if fails:
                reply(failure_of(LearnerError("loss=nan")), True)
            else:
                await asyncio.Event().wait()

        return actor

    async def main() -> None:
        async with connected(rank("0", fails=False)) as zero, connected(rank("1", fails=True)) as one:
            with pytest.raises(LearnerError, match="loss=nan"):
                async with asyncio.timeout(20):
                    await RemoteTrainer([zero, one]).publish()

    asyncio.run(main())
    assert sorted(seen) == ["0", "1"]


def test_scores_come_back_split_as_the_sequences_were() -> None:
    from actors.messages import Scored

    async def echo(call: Call, reply: Reply) -> None:
        assert isinstance(call.body, Score)
        flat = np.concatenate([np.frombuffer(ids, np.int32) for ids in call.body.token_ids])
        reply(Scored(logprobs=-flat.astype(np.float32)), True)

    async def main() -> None:
        async with connected(echo) as caller:
            sequences = [np.array(ids, np.int32) for ids in ([1, 2, 3], [4], [5, 6])]
            found = await RemoteTrainer([caller]).logprobs(sequences)
            assert [values.tolist() for values in found] == [[-1, -2, -3], [-4], [-5, -6]]

    asyncio.run(main())

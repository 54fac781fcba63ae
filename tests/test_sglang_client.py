"""SglangGenerator and a server that notes what it is told: what is sent, in which order, and what failures become."""

import asyncio
import itertools
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
import pytest

from engine.errors import GeneratorError, GeneratorLostError, RequestRefusedError
from engine.inference.sglang import SglangGenerator, is_ready
from engine.inference.sglang_config import SglangConfig
from engine.types import Completion, GenerateRequest, SamplingParams, UpdateMode, WeightRef
from tests.fake_sglang import VOCAB_SIZE, Cut, FakeSglang, sampled, write_model

pytestmark = pytest.mark.timeout(60)

SOON_S = 10.0
"""What has not happened by then never will."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the fake serves."""
    return write_model(tmp_path_factory.mktemp("model"))


@asynccontextmanager
async def connected(
    model: str,
    server: FakeSglang | None = None,
    *,
    config: SglangConfig | None = None,
    update_timeout_s: float = SOON_S,
) -> AsyncGenerator[tuple[FakeSglang, SglangGenerator], None]:
    """A client that has met its server, which has forgotten that."""
    async with asyncio.timeout(SOON_S), server or FakeSglang() as server:
        client = SglangGenerator(
            server.url, config or SglangConfig(), model_path=model, update_timeout_s=update_timeout_s
        )
        async with client as generator:
            server.calls.clear()
            yield server, generator


def ask(
    name: str = "r",
    *,
    num_new: int = 6,
    prompt: tuple[int, ...] = (1, 2, 3, 4),
    interval: int = 2,
    fork_after: int = 0,
    **sampling: Any,
) -> GenerateRequest:
    return GenerateRequest(
        request_id=name,
        token_ids=np.array(prompt, np.int32),
        sampling=SamplingParams(max_new_tokens=num_new, **sampling),
        stream_interval=interval,
        fork_after=fork_after,
    )


async def collect(generator: SglangGenerator, request: GenerateRequest) -> list[Completion]:
    async with aclosing(generator.generate(request)) as stream:
        return [chunk async for chunk in stream]


def tokens_of(chunks: list[Completion]) -> list[int]:
    return [int(token) for chunk in chunks for token in chunk.token_ids]


def versions_of(chunks: list[Completion]) -> list[int]:
    return [int(version) for chunk in chunks for version in chunk.versions]


async def other_tasks() -> None:
    """Let all that can go on without the network do so."""
    for _ in range(20):
        await asyncio.sleep(0)


# -- meeting the server ---------------------------------------------------------------------------------------------


async def meet(model: str, url: str, **config: Any) -> None:
    async with asyncio.timeout(SOON_S), SglangGenerator(url, SglangConfig(**config), model_path=model):
        pass


def refusal_of(model: str, server: FakeSglang, **config: Any) -> str:
    """Why a server is not the one that was meant, without its address."""

    async def main() -> str:
        async with server:
            with pytest.raises(GeneratorError) as caught:
                await meet(model, server.url, **config)
            assert type(caught.value) is GeneratorError
            assert str(caught.value).startswith(server.url)
            return str(caught.value).removeprefix(server.url)

    return asyncio.run(main())


def test_a_server_of_another_model_is_refused(model: str) -> None:
    assert refusal_of(model, FakeSglang(model_type="llama")) == ": a llama model is served there, not a qwen3 one"


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE - 1, VOCAB_SIZE + 1])
def test_a_server_of_another_vocabulary_is_refused(model: str, vocab_size: int) -> None:
    message = ": the model served there has not 16 tokens, as this run's has"
    assert refusal_of(model, FakeSglang(vocab_size=vocab_size)) == message


def test_a_server_that_samples_ahead_is_refused(model: str) -> None:
    """Several tokens may then come with an abort that nobody has looked at for stops."""
    message = ": the server samples ahead (EAGLE), and does not say whose tokens it kept"
    assert refusal_of(model, FakeSglang(speculative="EAGLE")) == message


@pytest.mark.parametrize("version", ["0.5.20", "0.4.99.post1", "0.5.21rc1", "0.5.21.dev7", "0.5", "unknown"])
def test_a_server_of_another_time_is_refused(model: str, version: str) -> None:
    message = f": SGLang {version} answers there, 0.5.21 or newer is needed"
    assert refusal_of(model, FakeSglang(version=version)) == message


@pytest.mark.parametrize("version", ["0.5.21", "0.5.21.post1", "0.5.22rc0", "0.5.22.dev3+g1234", "0.6", "1.0.0"])
def test_newer_servers_are_not(model: str, version: str) -> None:
    async def main() -> None:
        async with FakeSglang(version=version) as server:
            await meet(model, server.url)

    asyncio.run(main())


def test_a_server_that_is_busy_has_longer_for_a_token_than_for_other_answers(model: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(SOON_S), FakeSglang() as server:
            server.change(holding={"/generate"})
            client = SglangGenerator(server.url, SglangConfig(), model_path=model, answer_timeout_s=0.1)
            with pytest.raises(GeneratorLostError, match=r"/generate: no answer within 0\.1 s$"):
                await client.__aenter__()

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/server_info", "/model_info", "/generate"])
def test_a_path_that_is_not_there_names_the_version_that_has_it(model: str, path: str) -> None:
    message = f"{path}: there is no such endpoint; SGLang 0.5.21 or newer is needed"
    assert refusal_of(model, FakeSglang(missing=(path,))) == message


def test_the_key_is_sent_with_every_call_and_its_lack_is_told(model: str) -> None:
    async def main() -> None:
        config = SglangConfig(api_key="secret")
        async with connected(model, server := FakeSglang(api_key="secret"), config=config) as (_, generator):
            await collect(generator, ask())
            await generator.update_weights(WeightRef(version=1, path="/w"), mode="retract")
            assert await is_ready(server.url, api_key="secret")
            assert not await is_ready(server.url)
        assert {call.authorization for call in server.calls[:-1]} == {"Bearer secret"}

    asyncio.run(main())
    assert refusal_of(model, FakeSglang(api_key="secret")) == "/server_info: 401: Unauthorized"


def test_where_nobody_listens_it_is_lost(model: str) -> None:
    async def main() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            with pytest.raises(GeneratorLostError, match=rf"^{url}/server_info: Cannot connect to host \S+") as caught:
                await meet(model, url)
            assert "\n" not in str(caught.value)
            assert not await is_ready(url)

    asyncio.run(main())


@asynccontextmanager
async def stranger(answer: bytes) -> AsyncGenerator[str, None]:
    """Somebody who accepts, says `answer`, and waits."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()
        gone.set()

    gone = asyncio.Event()
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        await gone.wait()


def test_one_who_accepts_and_never_answers_is_lost_in_time(model: str) -> None:
    async def main() -> None:
        async with stranger(b"") as url:
            with pytest.raises(GeneratorLostError, match=rf"^{url}/server_info: no answer within 0.1 s$"):
                await meet(model, url, connect_timeout_s=0.1)
        async with stranger(b"") as url:
            assert not await is_ready(url, timeout_s=0.1)

    asyncio.run(main())


def http(status: str, body: bytes, *, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"220 mail.example.org ESMTP\r\n", "400, message="),
        (http("200 OK", b"\xff\xfe\n\n"), "no JSON object, but \ufffd\ufffd"),
        (http("200 OK", b'"\xff"'), 'no JSON object, but "\ufffd"'),
        (http("200 OK", b"[]"), "no JSON object, but []"),
        (http("200 OK", b"plain", headers="Content-Encoding: gzip\r\n"), "400, message: Can not decode"),
        (http("502 Bad", b"<html>\n<h1>Bad Gateway</h1>\n<hr>"), "502: <html> <h1>Bad Gateway</h1> <hr>"),
    ],
    ids=["mail", "bytes", "text", "list", "encoding", "proxy"],
)
def test_one_who_speaks_another_language_is_told_in_one_line(model: str, answer: bytes, message: str) -> None:
    async def main() -> None:
        async with stranger(answer) as url:
            with pytest.raises(GeneratorError) as caught:
                await meet(model, url)
            assert str(caught.value).startswith(f"{url}/server_info: {message}")
            assert "\n" not in str(caught.value)

    asyncio.run(main())


@pytest.mark.parametrize(("named", "version"), [("default", 0), ("7", 7)])
def test_weights_without_a_number_are_version_0(model: str, named: str, version: int) -> None:
    async def main() -> None:
        async with connected(model, FakeSglang(weight_version=named)) as (server, generator):
            assert server.weight_version == str(version)
            assert (await generator.statistics()).version == version
            assert set(versions_of(await collect(generator, ask()))) == {version}

    asyncio.run(main())


def test_a_server_that_starts_is_not_ready_yet() -> None:
    async def main() -> None:
        async with FakeSglang(is_ready=False) as server:
            assert not await is_ready(server.url)
            server.change(is_ready=True)
            assert await is_ready(server.url)

    asyncio.run(main())


# -- one request ----------------------------------------------------------------------------------------------------


def test_a_request_is_sent_with_all_that_it_asks_for(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            request = ask(
                num_new=8,
                temperature=0.7,
                top_p=0.9,
                top_k=5,
                stop=("</tool>",),
                stop_token_ids=(2,),
                seed=2**40 + 5,
                interval=4,
            )
            chunks = await collect(generator, request)
            (body,) = server.bodies("/generate")
            assert body.pop("rid")
            assert body == {
                "input_ids": [1, 2, 3, 4],
                "sampling_params": {
                    "max_new_tokens": 8,
                    "temperature": 0.7,
                    "top_p": 0.9,
                    "top_k": 5,
                    "stop": ["</tool>"],
                    "stop_token_ids": [2],
                    "no_stop_trim": True,
                    "skip_special_tokens": False,
                    "sampling_seed": 5,
                    "stream_interval": 4,
                },
                "return_logprob": True,
                "top_logprobs_num": VOCAB_SIZE,
                "stream": True,
                "extra_key": "v0",
            }
            assert [chunk.request_id for chunk in chunks] == ["r", "r"]
            assert [chunk.finish_reason for chunk in chunks] == ["", "length"]
            assert [chunk.token_ids.size for chunk in chunks] == [5, 3]  # a server counts from the second one on
            assert tokens_of(chunks) == [sampled(n) for n in range(8)]
            for name in ("entropy_low", "entropy_high"):
                assert np.concatenate([getattr(chunk, name) for chunk in chunks]) == pytest.approx(np.log(VOCAB_SIZE))
            # Whoever has heard all of it aborts nothing.
            assert server.paths() == ["/generate"]

    asyncio.run(main())


def test_as_many_alternatives_are_asked_for_as_configured(model: str) -> None:
    async def main() -> None:
        async with connected(model, config=SglangConfig(top_logprobs=3)) as (server, generator):
            chunks = await collect(generator, ask())
            assert server.bodies("/generate")[0]["top_logprobs_num"] == 3
            assert (chunks[0].entropy_low < chunks[0].entropy_high + 1e-6).all()

    asyncio.run(main())


def test_a_server_that_repeats_itself_gives_the_same_chunks(model: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(is_incremental: bool) -> list[Any]:
        async with connected(model, FakeSglang(is_incremental=is_incremental)) as (_, generator):
            chunks = await collect(generator, ask(num_new=7, interval=3))
            return [(chunk.token_ids.tolist(), chunk.logprobs.tolist(), chunk.versions.tolist()) for chunk in chunks]

    expected = asyncio.run(main(True))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(main(False)) == expected
    assert "--incremental-streaming-output avoids that" in caplog.text


def test_no_name_of_a_request_begins_another(model: str) -> None:
    """The server aborts all whose names begin with the one it is told."""
    ids = ["1", "r", "r1", "r#2;", "2;r;", "11", ";", "1;", "#", "", "1", "r/1", "r/11"]

    async def main() -> None:
        async with connected(model) as (server, generator):
            for name in ids:
                await collect(generator, ask(name, num_new=1))
            rids = [body["rid"] for body in server.bodies("/generate")]
            assert len(rids) == len(ids)
            pairs = itertools.permutations(rids, 2)
            assert [(one, other) for one, other in pairs if other.startswith(one)] == []

    asyncio.run(main())


def test_two_clients_of_a_server_have_no_name_in_common(model: str) -> None:
    """The server aborts each name a while behind its stream, when another client may have come with the same ids."""

    async def main() -> None:
        async with connected(model) as (server, generator):
            await collect(generator, ask())
            async with SglangGenerator(server.url, SglangConfig(), model_path=model) as other:
                await collect(other, ask())
            first, second = (body["rid"] for body in server.bodies("/generate"))
            assert first != second

    asyncio.run(main())


def test_an_abort_ends_this_request_and_no_other(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=3)
            running = [asyncio.create_task(collect(generator, ask(name))) for name in ("r", "r1", "r#1;")]
            await server.until(lambda: [len(one.versions) for one in server.running.values()] == [3] * 3)
            await generator.abort("nobody")
            await generator.abort("r")
            chunks = await running[0]
            assert tokens_of(chunks) == [sampled(n) for n in range(3)]
            assert [chunk.finish_reason for chunk in chunks] == ["", "aborted"]
            server.change(limit=None)
            others = await asyncio.gather(*running[1:])
            assert [other[-1].finish_reason for other in others] == ["length"] * 2
            await generator.abort("r")
            assert len(server.bodies("/abort_request")) == 1, "nobody is not there, and r has ended"

    asyncio.run(main())


def test_a_stream_that_was_read_to_its_end_leaves_its_connection_to_the_next_one(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            for number, name in enumerate("abc", start=1):
                server.change(holding={"[DONE]"})
                reading = asyncio.create_task(collect(generator, ask(name)))
                await server.until(lambda number=number: server.num_finished == number)
                await other_tasks()
                server.change(holding=set())
                await reading
            assert len({call.port for call in server.calls}) == 1

    asyncio.run(main())


def test_closing_a_stream_early_aborts_its_request(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=4)
            async with aclosing(generator.generate(ask())) as stream:
                async for _ in stream:
                    break
            assert server.bodies("/abort_request") == [{"rid": server.bodies("/generate")[0]["rid"]}]
            assert (await generator.statistics()).num_running == 0
            await server.until(lambda: not server.running)

    asyncio.run(main())


@pytest.mark.parametrize("limit", [0, 3])
def test_cancelling_a_reader_aborts_its_request(model: str, limit: int) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=limit)
            reading = asyncio.create_task(collect(generator, ask()))
            await server.until(lambda: [len(one.versions) for one in server.running.values()] == [limit])
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert server.bodies("/abort_request") == [{"rid": server.bodies("/generate")[0]["rid"]}]
            await server.until(lambda: not server.running)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("broken", GeneratorLostError, r"^http://\S+/generate: "),
        ("ended", GeneratorLostError, r"^http://\S+/generate: the stream ended before its end$"),
        ("done", GeneratorError, r"^request r: the stream ended, and nothing said why$"),
    ],
)
def test_a_stream_that_ends_before_its_end_is_an_error_behind_what_was_heard(
    model: str, how: Cut, kind: type[GeneratorError], message: str
) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=5)
            stream = generator.generate(ask())
            chunks = [await anext(stream), await anext(stream)]
            assert tokens_of(chunks) == [sampled(n) for n in range(5)]
            server.cut(how)
            with pytest.raises(GeneratorError, match=message) as caught:
                await anext(stream)
            assert type(caught.value) is kind
            assert "\n" not in str(caught.value)
            server.change(limit=None)
            assert tokens_of(await collect(generator, ask())) == [sampled(n) for n in range(6)]

    asyncio.run(main())


@pytest.mark.parametrize("limit", [0, 3])
@pytest.mark.parametrize("holding", ["/generate", ""])
def test_a_client_that_is_closed_under_its_requests_ends_them(model: str, holding: str, limit: int) -> None:
    """As a supervisor does when one of them has met a loss: nobody else would tell the others."""

    async def main() -> None:
        async with asyncio.timeout(SOON_S), FakeSglang() as server:
            client = await SglangGenerator(server.url, SglangConfig(), model_path=model).__aenter__()
            server.change(limit=limit, holding={holding})
            running = [asyncio.create_task(collect(client, ask(name, fork_after=2))) for name in "abc"]
            await server.until(lambda: len(server.bodies("/generate")) == 3)
            if not holding:
                await server.until(lambda: len(server.running) == 3)
            await client.__aexit__()
            for one in running:
                with pytest.raises(GeneratorLostError, match=r"/generate: "):
                    await one

    asyncio.run(main())


def test_a_request_that_is_in_flight_is_not_begun_again(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=2)
            first = asyncio.create_task(collect(generator, ask("r")))
            await server.until_called("/generate")
            with pytest.raises(GeneratorError, match=r"^request r: a request of this id is in flight$"):
                await collect(generator, ask("r"))
            server.change(limit=None)
            assert (await first)[-1].finish_reason == "length"
            assert (await collect(generator, ask("r")))[-1].finish_reason == "length"
            first_rid, second_rid = (body["rid"] for body in server.bodies("/generate"))
            assert first_rid != second_rid

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (ask(prompt=(1, VOCAB_SIZE)), "token ids 1..16 leave the vocabulary of 16"),
        (ask(prompt=(-1, 3)), "token ids -1..3 leave the vocabulary of 16"),
        (ask(prompt=()), "needs a prompt"),
        (ask(num_new=61), "4 prompt tokens and 61 new ones can never fit into 64"),
        (ask(temperature=-1.0), "got sampling.temperature=-1.0"),
    ],
)
def test_what_can_never_run_is_refused_before_anything_is_sent(
    model: str, asked: GenerateRequest, message: str
) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            with pytest.raises(RequestRefusedError, match=f"^request r: {message}"):
                await collect(generator, asked)
            assert server.calls == []
            assert (await generator.statistics()).num_requests == 0

    asyncio.run(main())


def test_statistics_count_what_went_through(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            begun_s = asyncio.get_running_loop().time()
            idle = await generator.statistics()
            assert (idle.num_requests, idle.num_sampled_tokens, idle.busy_s) == (0, 0, 0.0)
            await collect(generator, ask("a", num_new=3, prompt=(1, 2, 3)))
            server.change(limit=2)
            running = asyncio.create_task(collect(generator, ask("b", num_new=4, prompt=(1, 2, 3, 3, 1))))
            await server.until(lambda: [len(one.versions) for one in server.running.values()] == [2])
            assert (await generator.statistics()).num_running == 1
            server.change(limit=None)
            await running
            seen = await generator.statistics()
            assert (seen.num_requests, seen.num_running, seen.num_sampled_tokens) == (2, 0, 7)
            # The second prompt has the first one and its first token as a prefix.
            assert (seen.num_cached_tokens, seen.num_prefilled_tokens) == (4, 3 + 1)
            # Seconds in which several are in flight count once.
            await asyncio.gather(*(collect(generator, ask(name)) for name in "cde"))
            busy_s = (await generator.statistics()).busy_s
            assert seen.busy_s < busy_s <= asyncio.get_running_loop().time() - begun_s

    asyncio.run(main())


# -- updates --------------------------------------------------------------------------------------------------------

REF = WeightRef(version=3, path="/weights/3")


def load(*, flush: bool) -> tuple[str, Any]:
    return "/update_weights_from_disk", {"model_path": "/weights/3", "weight_version": "3", "flush_cache": flush}


def pause(mode: str) -> tuple[str, Any]:
    return "/pause_generation", {"mode": mode}


CONTINUE = ("/continue_generation", {})
FLUSH = ("/flush_cache?timeout=30", {})
ORDERS: list[tuple[UpdateMode, bool, list[tuple[str, Any]]]] = [
    ("retract", True, [pause("retract"), load(flush=True), CONTINUE]),
    ("in_place", True, [pause("in_place"), load(flush=False), CONTINUE]),
    ("drain", True, [load(flush=False), FLUSH]),
    ("retract", False, [pause("retract"), load(flush=False), CONTINUE]),
    ("in_place", False, [pause("in_place"), load(flush=False), CONTINUE]),
    ("drain", False, [load(flush=False)]),
]


@pytest.mark.parametrize(("mode", "is_salted", "order"), ORDERS)
def test_an_update_is_told_in_the_order_of_its_mode(
    model: str, mode: UpdateMode, is_salted: bool, order: list[tuple[str, Any]]
) -> None:
    async def main() -> None:
        async with connected(model, config=SglangConfig(salt_by_version=is_salted)) as (server, generator):
            await generator.update_weights(REF, mode=mode)
            assert [(call.path, call.body) for call in server.calls] == order
            assert (await generator.statistics()).version == 3

    asyncio.run(main())


async def updated_midway(server: FakeSglang, generator: SglangGenerator, mode: UpdateMode) -> list[Completion]:
    """A request of 8 tokens that had 3 when an update came."""
    server.change(limit=3)
    running = asyncio.create_task(collect(generator, ask(num_new=8, interval=1)))
    await server.until(lambda: [len(one.versions) for one in server.running.values()] == [3])
    updating = asyncio.create_task(generator.update_weights(REF, mode=mode))
    await server.until_called("/update_weights_from_disk")
    server.change(limit=None)
    await updating
    return await running


@pytest.mark.parametrize(
    ("mode", "versions", "is_mixed"),
    [
        ("retract", [0, 0, 0, 3, 3, 3, 3, 3], [False] * 8),
        ("in_place", [0, 0, 0, 3, 3, 3, 3, 3], [False] * 3 + [True] * 5),
        ("drain", [0] * 8, [False] * 8),
    ],
)
def test_a_running_request_goes_on_or_ends_as_the_mode_says_and_is_marked_where_it_is_mixed(
    model: str, mode: UpdateMode, versions: list[int], is_mixed: list[bool]
) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            chunks = await updated_midway(server, generator, mode)
            assert versions_of(chunks) == versions
            assert [chunk.is_mixed for chunk in chunks for _ in chunk.token_ids] == is_mixed
            assert set(versions_of(await collect(generator, ask("later")))) == {3}

    asyncio.run(main())


def test_nothing_is_mixed_though_tokens_come_before_the_answer_to_continue(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=2, holding={"/continue_generation"})
            stream = generator.generate(ask(num_new=4, interval=1))
            begun = [await anext(stream), await anext(stream)]
            updating = asyncio.create_task(generator.update_weights(REF, mode="retract"))
            await server.until_called("/continue_generation")
            server.change(limit=3)
            begun.append(await anext(stream))
            assert not updating.done()
            server.change(holding=set(), limit=None)
            await updating
            rest = [chunk async for chunk in stream]
            assert versions_of(begun + rest) == [0, 0, 3, 3]
            assert not any(chunk.is_mixed for chunk in begun + rest)

    asyncio.run(main())


def test_a_retract_behind_an_update_in_place_makes_a_request_clean_again(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            chunks: list[Completion] = []
            stream = generator.generate(ask(num_new=6, interval=1))
            modes: tuple[UpdateMode, ...] = ("retract", "in_place", "in_place", "retract", "in_place")
            for version, mode in enumerate(modes, start=1):
                # Behind an update a request is ended with its next token, and goes on as another one.
                server.change(limit=1 + (version + 1) % 2)
                chunks.append(await anext(stream))
                await generator.update_weights(WeightRef(version=version, path="/w"), mode=mode)
            server.change(limit=None)
            chunks += [chunk async for chunk in stream]
            assert versions_of(chunks) == [0, 1, 2, 3, 4, 5]
            assert [chunk.is_mixed for chunk in chunks] == [False, False, True, True, False, True]

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["retract", "in_place"])
@pytest.mark.parametrize("interval", [1, 2, 4])
def test_a_request_goes_on_as_another_one_when_an_event_may_hold_tokens_of_two_versions(
    model: str, interval: int, mode: UpdateMode
) -> None:
    """Nothing but the end of a request tells them apart, so it is ended; its rest reads what it computed."""

    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=4)
            running = asyncio.create_task(collect(generator, ask(num_new=12, interval=interval, fork_after=9, seed=5)))
            await server.until(lambda: [len(one.versions) for one in server.running.values()] == [4])
            await generator.update_weights(REF, mode=mode)
            server.change(limit=6)
            await server.until(lambda: len(server.bodies("/generate")) == 2)
            server.change(limit=None)
            chunks = await running
            first, second, third = server.bodies("/generate")
            num_first = len(second["input_ids"]) - 4
            assert 4 < num_first <= 6
            assert versions_of(chunks) == [0] * 4 + [3] * 8
            lengths = [body["sampling_params"].pop("max_new_tokens") for body in (first, second, third)]
            assert lengths == [9, 9 - num_first, 3]
            assert first["sampling_params"] == second["sampling_params"] == third["sampling_params"]
            assert [body["rid"] for body in server.bodies("/abort_request")] == [first["rid"]]
            assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]
            # Each part computes its last token, as every next token does, and reads all else.
            assert sum(chunk.num_prefilled_tokens for chunk in chunks) == 4
            assert (await generator.statistics()).num_requests == 1

    asyncio.run(main())


def test_a_request_whose_server_others_update_is_divided_once(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=3)
            running = asyncio.create_task(collect(generator, ask(num_new=12, interval=1)))
            await server.until(lambda: [len(one.versions) for one in server.running.values()] == [3])
            server.change(weight_version="9", limit=5)
            await server.until(lambda: len(server.bodies("/generate")) == 2)
            server.change(limit=None)
            chunks = await running
            assert versions_of(chunks) == [0] * 3 + [9] * 9
            assert len(server.bodies("/generate")) == 2

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["retract", "in_place", "drain"])
def test_new_requests_wait_for_an_update_and_go_under_its_key(model: str, mode: UpdateMode) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(holding={"/update_weights_from_disk"})
            updating = asyncio.create_task(generator.update_weights(REF, mode=mode))
            await server.until_called("/update_weights_from_disk")
            waiting = asyncio.create_task(collect(generator, ask()))
            await other_tasks()
            assert await is_ready(server.url)
            assert server.bodies("/generate") == []
            server.change(holding=set())
            await updating
            assert set(versions_of(await waiting)) == {3}
            assert server.paths()[-1] == "/generate"
            # A key is new where the cache could not be flushed.
            assert server.bodies("/generate")[0]["extra_key"] == ("v3" if mode == "in_place" else "v0")

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["retract", "in_place", "drain"])
@pytest.mark.parametrize("is_salted", [True, False], ids=["salted", "unsalted"])
def test_no_request_after_an_update_reads_a_prefix_of_older_weights(
    model: str, mode: UpdateMode, is_salted: bool
) -> None:
    async def main() -> None:
        async with connected(model, config=SglangConfig(salt_by_version=is_salted)) as (server, generator):
            await collect(generator, ask("a"))
            assert (await collect(generator, ask("b")))[0].num_cached_tokens == 3
            await generator.update_weights(REF, mode=mode)
            chunk = (await collect(generator, ask("c")))[0]
            assert chunk.num_cached_tokens == (0 if is_salted else 3)
            assert not chunk.is_mixed
            keys = [body["extra_key"] for body in server.bodies("/generate")]
            assert keys == (["v0", "v0", "v3" if mode == "in_place" else "v0"] if is_salted else [None] * 3)

    asyncio.run(main())


@pytest.mark.parametrize(("mode", "num_cached"), [("retract", 11), ("in_place", 0), ("drain", 0)])
def test_the_next_turn_reads_what_its_request_computed_anew_and_nothing_older(
    model: str, mode: UpdateMode, num_cached: int
) -> None:
    """A retracted request has computed its 4 + 8 tokens with the new weights, under the key that it began with."""

    async def main() -> None:
        async with connected(model) as (server, generator):
            turn = (1, 2, 3, 4, *tokens_of(await updated_midway(server, generator, mode)))
            assert len(turn) == 12
            chunk = (await collect(generator, ask("next", prompt=turn)))[0]
            assert chunk.num_cached_tokens == num_cached
            assert not chunk.is_mixed

    asyncio.run(main())


def test_updates_do_not_overlap(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(holding={"/update_weights_from_disk"})
            both = [
                asyncio.create_task(generator.update_weights(WeightRef(version=version, path="/w"), mode="in_place"))
                for version in (1, 2)
            ]
            await server.until_called("/update_weights_from_disk")
            await other_tasks()
            server.change(holding=set())
            await asyncio.gather(*both)
            assert server.paths() == ["/pause_generation", "/update_weights_from_disk", "/continue_generation"] * 2
            assert (await generator.statistics()).version == 2

    asyncio.run(main())


@pytest.mark.parametrize(("mode", "is_paused"), [("retract", True), ("in_place", True), ("drain", False)])
def test_an_update_that_fails_is_an_error_and_generation_goes_on(model: str, mode: UpdateMode, is_paused: bool) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(limit=2, refusal="Failed to update weights: no such folder")
            running = asyncio.create_task(collect(generator, ask()))
            await server.until(lambda: [len(one.versions) for one in server.running.values()] == [2])
            updating = asyncio.create_task(generator.update_weights(REF, mode=mode))
            await server.until_called("/update_weights_from_disk")
            server.change(limit=None)
            with pytest.raises(GeneratorError, match=r"disk: 400: Failed to update weights: no such folder$"):
                await updating
            assert versions_of(await running) == [0] * 6
            assert ("/continue_generation" in server.paths()) is is_paused
            assert (await generator.statistics()).version == 0
            assert set(versions_of(await collect(generator, ask()))) == {0}

    asyncio.run(main())


def test_an_update_without_an_answer_is_lost_in_its_own_time_and_generation_goes_on(model: str) -> None:
    async def main() -> None:
        async with connected(model, update_timeout_s=0.1) as (server, generator):
            server.change(holding={"/update_weights_from_disk"})
            with pytest.raises(GeneratorLostError, match=r"disk: no answer within 0\.1 s$"):
                await generator.update_weights(REF, mode="retract")
            assert not server.is_paused
            server.change(holding=set())
            assert (await collect(generator, ask()))[-1].finish_reason == "length"

    asyncio.run(main())


def test_an_update_that_is_cancelled_lets_generation_go_on(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(holding={"/update_weights_from_disk"})
            updating = asyncio.create_task(generator.update_weights(REF, mode="retract"))
            await server.until_called("/update_weights_from_disk")
            updating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await updating
            assert not server.is_paused

    asyncio.run(main())


def test_a_pause_that_is_cancelled_does_not_stay(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(holding={"/pause_generation"})
            updating = asyncio.create_task(generator.update_weights(REF, mode="retract"))
            await server.until(lambda: server.is_paused)
            updating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await updating
            assert not server.is_paused
            assert (await collect(generator, ask()))[-1].finish_reason == "length"

    asyncio.run(main())


def test_a_pause_without_an_answer_does_not_stay(model: str) -> None:
    async def main() -> None:
        async with connected(model, config=SglangConfig(connect_timeout_s=0.1)) as (server, generator):
            server.change(holding={"/pause_generation"})
            with pytest.raises(GeneratorLostError, match=r"/pause_generation: no answer within 0\.1 s$"):
                await generator.update_weights(REF, mode="retract")
            assert not server.is_paused

    asyncio.run(main())

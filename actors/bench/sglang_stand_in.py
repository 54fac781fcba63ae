"""A stand-in for an SGLang server, in a process of its own: what a workload's law says, in SGLang's words.

For measuring what a client costs: events have the sizes and the rhythm of a real server's, and nothing is computed. It
speaks as much of HTTP as our client needs. An event comes with the first token and behind every `stream_interval`
further ones, as from a server.
"""

import asyncio
import contextlib
import multiprocessing
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from actors.bench.workload import Law, Workload
from engine.errors import GeneratorError
from engine.inference.shape import ModelShape, write_config
from engine.types import GenerateRequest, SamplingParams

MAX_LENGTH = 1 << 20
_START_S = 60.0
_HEAD = "HTTP/1.1 {status} Status\r\ncontent-type: {kind}\r\n{length}\r\n\r\n"


def write_model(folder: Path, *, vocab_size: int) -> str:
    """Say in `folder` what model the stand-in serves; a client reads nothing else of it."""
    folder.mkdir(exist_ok=True)
    shape = ModelShape(
        kind="qwen3",
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_positions=MAX_LENGTH,
    )
    write_config(folder, shape)
    return str(folder)


@contextlib.contextmanager
def stand_in(law: Law, *, seed: int, folder: Path) -> Iterator[str]:
    """The address of one that serves for the length of the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, law, seed, folder), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(_START_S):
            raise GeneratorError(f"the stand-in for SGLang did not start within {_START_S:g} s")
        yield here.recv()
    finally:
        here.close()  # which ends the other process
        process.join()


def _serve(pipe: Connection, law: Law, seed: int, folder: Path) -> None:
    async def main() -> None:
        closed = asyncio.Event()
        server = _StandIn(Workload(law, seed=seed, folder=folder))
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=4096)
        pipe.send(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
        await closed.wait()
        listening.close()

    asyncio.run(main())


class _StandIn:
    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._version = "0"
        self._running: dict[str, bool] = {}
        """Names of requests, and whether they are aborted."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests in turn."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                size = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
                body = msgspec.json.decode(await reader.readexactly(size)) if size else {}
                path = head.split(" ")[1]
                if path == "/generate" and body.get("stream"):
                    await self._stream(body, writer)
                else:
                    status, answer = self._act(path, body)
                    content = msgspec.json.encode(answer)
                    length = f"content-length: {len(content)}"
                    writer.write(_HEAD.format(status=status, kind="application/json", length=length).encode() + content)
        writer.close()

    def _act(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match path:
            case "/server_info":
                sizes = {"max_total_num_tokens": MAX_LENGTH, "tp_size": 1, "device": "cpu"}
                return 200, {"version": "0.5.21", "incremental_streaming_output": True, **sizes}
            case "/model_info":
                return 200, {"model_type": "qwen3", "weight_version": self._version}
            case "/generate" if max(body["token_ids_logprob"]) >= self._workload.vocab_size:
                return 400, {"error": {"message": "out of vocabulary"}}
            case "/update_weights_from_disk":
                self._version = body["weight_version"]
            case "/abort_request" if body["rid"] in self._running:
                self._running[body["rid"]] = True
            case _:
                pass
        return 200, {"success": True}

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        sampling = body["sampling_params"]
        size = sampling["max_new_tokens"]
        params = SamplingParams(max_new_tokens=size, seed=sampling["sampling_seed"])
        prompt = np.array(body["input_ids"], np.int32)
        tokens = list(
            self._workload.script(GenerateRequest(request_id="", token_ids=prompt, sampling=params)).token_ids
        )
        tokens = tokens[:size]
        writer.write(_HEAD.format(status=200, kind="text/event-stream", length="transfer-encoding: chunked").encode())
        ends = [*range(1, len(tokens), sampling["stream_interval"]), len(tokens)]
        versions: list[dict[str, Any]] = []
        self._running[body["rid"]] = False
        for start, end in pairwise([0, *ends]):
            await asyncio.sleep(self._workload.law.token_s * (end - start))
            is_aborted = self._running[body["rid"]]
            versions.append({"version": self._version, "start": start, "end": end})
            event = self._event(body, tokens, versions, is_aborted=is_aborted)
            writer.write(_chunk(b"data: " + msgspec.json.encode(event) + b"\n\n"))
            await writer.drain()
            if is_aborted:
                break
        del self._running[body["rid"]]
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _event(
        self, body: dict[str, Any], tokens: list[int], versions: list[dict[str, Any]], *, is_aborted: bool
    ) -> dict[str, Any]:
        """The last one of the spans."""
        start, end = versions[-1]["start"], versions[-1]["end"]
        top = [(-1.2345678 - other, other, None) for other in range(body["top_logprobs_num"])]
        finish = {"type": "abort"} if is_aborted else {"type": "stop", "matched": tokens[-1]}
        is_last = is_aborted or end == len(tokens)
        meta: dict[str, Any] = {
            "id": body["rid"],
            "finish_reason": finish if is_last else None,
            "prompt_tokens": len(body["input_ids"]),
            "cached_tokens": 0,
            "completion_tokens": end,
            "weight_version": self._version,
            "output_token_logprobs": [(-1.2345678, token, None) for token in tokens[start:end]],
            "output_top_logprobs": [top] * (end - start),
        }
        if is_last:
            meta["weight_versions"] = versions
        return {"text": "", "output_ids": tokens[start:end], "meta_info": meta}


def _chunk(payload: bytes) -> bytes:
    return f"{len(payload):x}\r\n".encode() + payload + b"\r\n"

"""FakeSglang: SGLang's HTTP interface as far as the client speaks it, with every call noted in order.

Token i of any request is `sampled(i)`, drawn from an even distribution. Requests go on while there is no `limit`, so a
test can act in the middle of one; answers of the paths in `holding` come when they are taken out of it. A streamed
request that is held has not been heard of yet.
"""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from aiohttp import web

from engine.inference.shape import ModelShape, write_config

VOCAB_SIZE = 16
Cut = Literal["", "broken", "ended", "done"]
"""How a stream ends early: its connection breaks, its body ends, or it says that this was all."""


def sampled(position: int) -> int:
    return (7 * position + 3) % VOCAB_SIZE


def is_due(num_tokens: int, interval: int) -> bool:
    """Whether a server that may send an event every so many tokens sends one behind so many."""
    return num_tokens % interval == (1 if interval > 1 else 0)


def write_model(folder: Path) -> str:
    """Say in `folder` what model the fake serves; a client reads nothing else of it."""
    shape = ModelShape(
        kind="qwen3",
        vocab_size=VOCAB_SIZE,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_positions=64,
    )
    write_config(folder, shape)
    return str(folder)


class Call(NamedTuple):
    """One request that the server got."""

    path: str
    """With its query."""
    body: Any
    authorization: str | None
    port: int
    """Of the client: calls of one connection have one."""


class _Running:
    """One streamed request."""

    def __init__(self, body: dict[str, Any], num_cached: int) -> None:
        self.body = body
        self.num_cached = num_cached
        self.versions: list[str] = []
        self.num_sent = 0
        self.is_aborted = False
        self.cut: Cut = ""


class FakeSglang:
    """`async with FakeSglang(...) as server`; the attributes may be changed at any time, through `change`."""

    def __init__(
        self,
        *,
        version: str = "0.5.21",
        model_type: str = "qwen3",
        vocab_size: int = VOCAB_SIZE,
        weight_version: str = "0",
        is_incremental: bool = True,
        is_ready: bool = True,
        speculative: str | None = None,
        api_key: str | None = None,
        missing: tuple[str, ...] = (),
    ) -> None:
        self.version = version
        self.model_type = model_type
        self.vocab_size = vocab_size
        self.weight_version = weight_version
        self.is_incremental = is_incremental
        self.is_ready = is_ready
        self.speculative = speculative
        self.missing = missing
        """Paths that this version has not."""
        self.limit: int | None = None
        """Tokens that each request may have for now."""
        self.holding: set[str] = set()
        """Paths whose work is done, and whose answer is not given yet; `[DONE]` for what ends a stream."""
        self.num_finished = 0
        """Streams that have sent all but that."""
        self.refusal = ""
        """Why weights cannot be loaded."""
        self.is_paused = False
        self.calls: list[Call] = []
        self.running: dict[str, _Running] = {}
        self._authorization = f"Bearer {api_key}" if api_key else None
        self._cached: list[tuple[str | None, list[int]]] = []
        """The radix cache: keys and sequences."""
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cut("broken")
        self.change(holding=set())
        await self._runner.cleanup()

    # -- for tests --------------------------------------------------------------------------------------------------

    def change(self, **attributes: Any) -> None:
        """Set attributes, and let requests go on that waited for them."""
        for name, value in attributes.items():
            setattr(self, name, value)
        self._changed.set()
        self._changed = asyncio.Event()

    def cut(self, how: Cut) -> None:
        """End all streams early."""
        for one in self.running.values():
            one.cut = how
        self.change()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something holds of this server."""
        while not is_so():
            await self._changed.wait()

    async def until_called(self, path: str) -> None:
        await self.until(lambda: path in self.paths())

    def paths(self) -> list[str]:
        """What was called, in order."""
        return [call.path for call in self.calls]

    def bodies(self, path: str) -> list[Any]:
        """What a path was called with; of generations, those that stream."""
        bodies = [call.body for call in self.calls if call.path == path]
        return [body for body in bodies if path != "/generate" or "stream" in body]

    # -- the interface ----------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.body_exists else None
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        self.calls.append(Call(request.path_qs, body, request.headers.get("Authorization"), port))
        self.change()
        if self._authorization not in (None, self.calls[-1].authorization):
            return web.json_response({"error": "Unauthorized"}, status=401)
        if request.path in self.missing:
            return web.json_response({"detail": "Not Found"}, status=404)
        if request.path == "/generate" and body.get("stream"):
            await self.until(lambda: request.path not in self.holding)
            return await self._stream(request, body)
        response = await self._act(request.path, body)
        self.change()
        await self.until(lambda: request.path not in self.holding)
        return response

    async def _act(self, path: str, body: Any) -> web.Response:
        match path:
            case "/server_info":
                sizes = {"max_total_num_tokens": 1000, "tp_size": 1, "device": "cpu"}
                ways = {
                    "incremental_streaming_output": self.is_incremental,
                    "speculative_algorithm": self.speculative,
                }
                return web.json_response({"version": self.version, **sizes, **ways})
            case "/model_info":
                return web.json_response({"model_type": self.model_type, "weight_version": self.weight_version})
            case "/ready":
                return web.Response(status=200 if self.is_ready else 503)
            case "/generate":
                if max(body["token_ids_logprob"]) >= self.vocab_size:
                    return web.json_response({"error": {"message": "out of vocabulary"}}, status=400)
                return web.json_response({"output_ids": [0], "meta_info": {}})
            case "/abort_request":
                for name, one in self.running.items():
                    one.is_aborted |= name.startswith(body["rid"])
                return web.Response()
            case "/pause_generation" | "/continue_generation":
                self.is_paused = path == "/pause_generation"
                return web.json_response({"status": "ok"})
            case "/flush_cache":
                await self.until(lambda: not self.running)
                self._cached = []
                return web.Response(text="Cache flushed.\n")
            case "/update_weights_from_disk":
                return await self._load(body)
            case "/update_weight_version":
                self.weight_version = body["new_version"]
                return web.json_response({"success": True})
            case _:
                return web.json_response({"detail": "Not Found"}, status=404)

    async def _load(self, body: Any) -> web.Response:
        await self.until(lambda: self.is_paused or not self.running)
        if self.refusal:
            return web.json_response({"success": False, "message": self.refusal}, status=400)
        self.weight_version = body["weight_version"]
        if body["flush_cache"]:
            self._cached = []
        return web.json_response({"success": True, "message": "Succeeded to update model weights."})

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        one = _Running(body, self._num_cached(body))
        self.running[body["rid"]] = one
        try:
            await response.prepare(request)
            size = body["sampling_params"]["max_new_tokens"]
            finish: dict[str, Any] | None = None
            while finish is None and not one.cut:
                await self.until(lambda: bool(one.cut) or one.is_aborted or self._may_sample(one))
                if one.cut:
                    break
                if self._may_sample(one):
                    one.versions.append(self.weight_version)  # one that runs samples once more when it is aborted
                if one.is_aborted:
                    finish = {"type": "abort"}
                elif (last := sampled(len(one.versions) - 1)) in body["sampling_params"]["stop_token_ids"]:
                    finish = {"type": "stop", "matched": last}
                elif len(one.versions) == size:
                    finish = {"type": "length", "length": size}
                if finish is not None or is_due(len(one.versions), body["sampling_params"]["stream_interval"]):
                    await response.write(b"data: " + json.dumps(self._event(one, finish)).encode() + b"\n\n")
            if one.cut == "broken" and request.transport is not None:
                request.transport.abort()
            elif one.cut != "ended":
                self.num_finished += 1
                self.change()
                await self.until(lambda: "[DONE]" not in self.holding)
                await response.write(b"data: [DONE]\n\n")
        except ConnectionError:
            pass  # whoever read it has gone
        finally:
            # Of the last token nothing is computed before the next one.
            known = body["input_ids"] + list(map(sampled, range(len(one.versions) - 1)))
            self._cached.append((body["extra_key"], known))
            del self.running[body["rid"]]
            self.change()
        return response

    def _may_sample(self, one: _Running) -> bool:
        return not self.is_paused and (self.limit is None or len(one.versions) < self.limit)

    def _num_cached(self, body: dict[str, Any]) -> int:
        """Length of the longest prefix of the prompt that was computed under its key; one token is always left."""
        longest = 0
        for key, tokens in self._cached:
            same = [a == b for a, b in zip(body["input_ids"], tokens, strict=False)]
            longest = max(longest, ([*same, False].index(False)) if key == body["extra_key"] else 0)
        return min(longest, len(body["input_ids"]) - 1)

    def _event(self, one: _Running, finish: dict[str, Any] | None) -> dict[str, Any]:
        """The new tokens where the server streams incrementally, and all so far where it does not."""
        end = len(one.versions)
        positions = range(one.num_sent if self.is_incremental else 0, end)
        one.num_sent = end
        logprob = -math.log(VOCAB_SIZE)
        top = [[logprob, token, None] for token in range(one.body["top_logprobs_num"])]
        meta: dict[str, Any] = {
            "id": one.body["rid"],
            "finish_reason": finish,
            "prompt_tokens": len(one.body["input_ids"]),
            "cached_tokens": one.num_cached,
            "completion_tokens": end,
            "weight_version": self.weight_version,
            "output_token_logprobs": [[logprob, sampled(position), None] for position in positions],
            "output_top_logprobs": [top for _ in positions],
        }
        if finish is not None:
            meta["weight_versions"] = [
                {"version": version, "start": start, "end": start + 1} for start, version in enumerate(one.versions)
            ]
        return {"text": "", "output_ids": [sampled(position) for position in positions], "meta_info": meta}

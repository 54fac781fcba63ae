"""Server: the gateway over HTTP; every request is answered, refused in OpenAI's form, or given up by a deadline.

| a request        | waits for               | unblocked by                                     |
|------------------|-------------------------|--------------------------------------------------|
| its body         | the client              | `serve.read_timeout_s`, `serve.max_body_bytes`   |
| its turn         | the policy              | `rollout.sampling.chunk_timeout_s`, and a retry  |
| its stream       | the client              | `serve.write_timeout_s`, or that it goes away    |
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from actors.gateway.answers import CONVERSATION, Stream, errors, json_answer, key_of, shown
from actors.gateway.anthropic import MESSAGES, AnthropicReply
from actors.gateway.config import ServeConfig
from actors.gateway.conversation import Conversation
from actors.gateway.dialogue import Dialogue
from actors.gateway.errors import ApiError, refused
from actors.gateway.keys import Keys
from actors.gateway.openai_reply import ChatReply, Reply, TextReply
from actors.gateway.openai_request import CHAT, TEXT, decoded
from actors.gateway.said import TurnAsked
from actors.gateway.store import Store
from actors.gateway.turn import Turns
from engine.errors import ConfigError, DataError
from engine.loopback import names_loopback
from engine.types import Reward, ToolSpec

logger = logging.getLogger(__name__)

SWEEP_S = 30.0
EXPIRE_S = 3600.0
"""Between two looks at the age of records."""
SHUTDOWN_S = 5.0
_HELD_DIALOGUES = 256

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MakeDialogue = Callable[[tuple[ToolSpec, ...]], Dialogue]


class RewardGiven(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /v1/conversations/{id}/reward`."""

    reward: Annotated[float, Meta(ge=-1e6, le=1e6)]
    is_correct: bool | None = None
    reason: str = ""
    final: bool = True
    """Ends the conversation; otherwise another one may follow until it is finished."""


_REWARD: msgspec.json.Decoder[RewardGiven] = msgspec.json.Decoder(RewardGiven)


class Gateway:
    """The routes. `async with gateway.listening() as url`."""

    def __init__(
        self, config: ServeConfig, *, keys: Keys, store: Store, turns: Turns, make_dialogue: MakeDialogue
    ) -> None:
        self._config = config
        self._keys = keys
        self._store = store
        self._turns = turns
        self._make_dialogue = make_dialogue
        self._dialogues: dict[bytes, Dialogue] = {}
        self._num_streams = 0

    @property
    def num_streams(self) -> int:
        """Requests that sample now."""
        return self._num_streams

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str, None]:
        """Serve for the length of the block; the value is the server's address. Raises `ConfigError` for a port that
        is taken."""
        runner = web.AppRunner(self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._config.host, self._config.port)
            try:
                await site.start()
            except OSError as error:
                where = f"{self._config.host}:{self._config.port}"
                raise ConfigError(f"{where}: {error.strerror} - at $.serve.port") from None
            sweeping = asyncio.create_task(self._sweep(), name="gateway sweep")
            try:
                host, port = runner.addresses[0][:2]
                yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            finally:
                sweeping.cancel()
                await asyncio.gather(sweeping, return_exceptions=True)
        finally:
            await runner.cleanup()

    async def _sweep(self) -> None:
        next_expiry = 0.0
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self._store.sweep()
                if (now := asyncio.get_running_loop().time()) >= next_expiry:
                    next_expiry = now + EXPIRE_S
                    await self._store.expire()
            except Exception:  # a border: a disk that is full now must not keep everything open for ever
                logger.exception("the gateway could not sweep; it will try again")

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._keys.are_needed and not names_loopback(request.host):
            raise ApiError(403, "without keys this gateway answers to its own name alone", code="not_this_host")
        return await handler(request)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=self._config.max_body_bytes, middlewares=[errors, self._guard])
        named = "/v1/conversations/{name}"
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._text),
                web.post("/v1/messages", self._messages),
                web.get(named, self._show),
                web.delete(named, self._delete),
                web.post(f"{named}/fork", self._fork),
                web.post(f"{named}/finish", self._finish),
                web.post(f"{named}/discard", self._discard),
                web.post(f"{named}/reward", self._reward),
            ]
        )
        return app

    # -- turns ------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        tenant, body = self._keys.tenant(key_of(request)), await self._body(request)
        chat = decoded(CHAT, body)

        def reply(dialogue: Dialogue, conversation: Conversation) -> Reply:
            return ChatReply(
                dialogue,
                model=chat.model,
                conversation=conversation.name,
                has_logprobs=bool(chat.logprobs),
                has_usage=chat.wants_usage,
                is_stream=bool(chat.stream),
            )

        asked = chat.asked(max_messages=self._config.max_messages)
        return await self._answer(request, tenant, asked, reply, is_stream=bool(chat.stream))

    async def _text(self, request: web.Request) -> web.StreamResponse:
        tenant, body = self._keys.tenant(key_of(request)), await self._body(request)
        text = decoded(TEXT, body)

        def reply(dialogue: Dialogue, conversation: Conversation) -> Reply:
            return TextReply(
                dialogue,
                model=text.model,
                conversation=conversation.name,
                has_logprobs=text.logprobs is not None,
                has_usage=text.wants_usage,
            )

        asked = text.asked(max_messages=self._config.max_messages)
        return await self._answer(request, tenant, asked, reply, is_stream=bool(text.stream))

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        tenant, body = self._keys.tenant(key_of(request)), await self._body(request)
        said = decoded(MESSAGES, body)

        def reply(dialogue: Dialogue, conversation: Conversation) -> Reply:
            return AnthropicReply(model=said.model, conversation=conversation.name)

        asked = said.asked(max_messages=self._config.max_messages)
        return await self._answer(request, tenant, asked, reply, is_stream=bool(said.stream))

    async def _answer(
        self,
        request: web.Request,
        tenant: str,
        asked: TurnAsked,
        make_reply: Callable[[Dialogue, Conversation], Reply],
        *,
        is_stream: bool,
    ) -> web.StreamResponse:
        if self._num_streams >= self._config.max_streams:
            raise ApiError(429, "too many requests at once", code="too_many_streams")
        if header := request.headers.get(CONVERSATION):
            asked = msgspec.structs.replace(asked, conversation=header)
        try:
            dialogue = self._dialogue(asked.tools)
            conversation = self._store.begin(tenant, asked, dialogue)
        except (ConfigError, DataError) as error:
            raise refused(str(error)) from None
        self._num_streams += 1
        try:
            async with contextlib.aclosing(self._turns.run(conversation, asked, dialogue)) as pieces:
                reply = make_reply(dialogue, conversation)
                if not is_stream:
                    return json_answer(reply.whole([piece async for piece in pieces]), conversation=conversation.name)
                stream = Stream(request, conversation.name, timeout_s=self._config.write_timeout_s)
                with contextlib.suppress(ConnectionError):
                    await stream.send(reply, pieces)
                return stream.response
        finally:
            self._num_streams -= 1

    def _dialogue(self, tools: tuple[ToolSpec, ...]) -> Dialogue:
        key = msgspec.json.encode(tools)
        if key not in self._dialogues:
            if len(self._dialogues) >= _HELD_DIALOGUES:
                self._dialogues.pop(next(iter(self._dialogues)))
            self._dialogues[key] = self._make_dialogue(tools)
        return self._dialogues[key]

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._config.read_timeout_s):
                return await request.read()
        except TimeoutError:
            raise ApiError(408, f"no whole body within {self._config.read_timeout_s:g} s") from None

    # -- conversations ----------------------------------------------------------------------------------------

    async def _show(self, request: web.Request) -> web.Response:
        return shown(self._store.get(self._keys.tenant(key_of(request)), request.match_info["name"]))

    async def _fork(self, request: web.Request) -> web.Response:
        return shown(self._store.fork(self._keys.tenant(key_of(request)), request.match_info["name"]))

    async def _finish(self, request: web.Request) -> web.Response:
        return shown(self._store.finish(self._keys.tenant(key_of(request)), request.match_info["name"]))

    async def _discard(self, request: web.Request) -> web.Response:
        self._store.discard(self._keys.tenant(key_of(request)), request.match_info["name"])
        return json_answer({"id": request.match_info["name"], "discarded": True})

    async def _delete(self, request: web.Request) -> web.Response:
        self._store.delete(self._keys.tenant(key_of(request)), request.match_info["name"])
        return json_answer({"id": request.match_info["name"], "deleted": True})

    async def _reward(self, request: web.Request) -> web.Response:
        tenant = self._keys.rewarder(key_of(request))
        given = decoded(_REWARD, await self._body(request))
        is_correct = given.reward > 0 if given.is_correct is None else given.is_correct
        reward = Reward(score=given.reward, is_correct=is_correct, reason=given.reason)
        return shown(self._store.reward(tenant, request.match_info["name"], reward, is_final=given.final))

    async def _models(self, request: web.Request) -> web.Response:
        self._keys.tenant(key_of(request))
        model = {"id": self._config.model, "object": "model", "created": 0, "owned_by": "arpo"}
        return json_answer({"object": "list", "data": [model]})

    async def _health(self, request: web.Request) -> web.Response:
        del request
        found = {"streams": self._num_streams, "conversations": len(self._store), "version": self._store.version}
        return json_answer({"status": "ok", **found})

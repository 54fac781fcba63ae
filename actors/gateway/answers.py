"""Answers: how the gateway puts a result, a failure or a stream on the wire."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from actors.gateway.anthropic import anthropic_error
from actors.gateway.conversation import Conversation
from actors.gateway.errors import ApiError
from actors.gateway.openai_reply import Reply
from actors.gateway.turn import Piece

logger = logging.getLogger(__name__)

CONVERSATION = "X-Conversation-Id"
"""Header of requests, where the client names its conversation, and of all answers to them."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Stream:
    """One stream of events to one client, who must take each within a deadline."""

    def __init__(self, request: web.Request, conversation: str, *, timeout_s: float) -> None:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", CONVERSATION: conversation}
        self.response = web.StreamResponse(headers=headers)
        self._request = request
        self._timeout_s = timeout_s

    async def send(self, reply: Reply, pieces: AsyncGenerator[Piece, None]) -> None:
        """Nothing is sent before the first piece, so that what fails at once has a status of its own.

        Raises `ConnectionError` where the client is gone, or too slow.
        """
        try:
            async for piece in pieces:
                if not self.response.prepared:
                    await self.response.prepare(self._request)
                    await self._write(reply.begin())
                await self._write(reply.piece(piece))
        except ApiError as error:
            if not self.response.prepared:
                raise
            await self._write(reply.error(error))
        except ConnectionError:
            raise
        except Exception:  # a border: behind the first piece nothing but an event can tell the client
            if not self.response.prepared:
                raise
            logger.exception("a stream failed")
            await self._write(reply.error(ApiError(500, "the gateway failed; its log says how")))
        await self._taken(self.response.write_eof())

    async def _write(self, content: bytes) -> None:
        if content:
            await self._taken(self.response.write(content))

    async def _taken(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await sending
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client is too slow") from None


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What a request may fail with, in the protocol's form; what is nobody's mistake but ours is logged, and a 500."""
    try:
        return await handler(request)
    except ApiError as failure:
        error = failure
    except web.HTTPRequestEntityTooLarge:
        error = ApiError(413, "the body is too large", code="body_too_large")
    except web.HTTPException as failure:
        error = ApiError(failure.status, failure.reason)
    except Exception:  # a border: one request must not take the others with it
        logger.exception("%s %s failed", request.method, request.path)
        error = ApiError(500, "the gateway failed; its log says how")
    body = anthropic_error(error) if request.path == "/v1/messages" else error.body
    return json_answer(body, status=error.status)


def key_of(request: web.Request) -> str | None:
    """`Authorization: Bearer KEY`, or `x-api-key: KEY`."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key")


def json_answer(content: dict[str, Any], *, status: int = 200, conversation: str | None = None) -> web.Response:
    headers = {} if conversation is None else {CONVERSATION: conversation}
    return web.Response(
        body=msgspec.json.encode(content), status=status, content_type="application/json", headers=headers
    )


def shown(conversation: Conversation) -> web.Response:
    reward = None if conversation.reward is None else conversation.reward.score
    return json_answer(
        {
            "id": conversation.name,
            "object": "conversation",
            "status": "ended" if conversation.is_over else "finished" if conversation.is_finished else "open",
            "turns": conversation.num_turns,
            "rewrites": conversation.num_rewrites,
            "tokens": conversation.path.length,
            "tree": conversation.tree.name,
            "reward": reward,
        },
        conversation=conversation.name,
    )

"""Router: one generator made of many; a tree stays where its prefix is cached, for as long as somebody answers there.

A generator that is lost takes no tree for a while, which doubles with each further loss; its trees move, and their
paths are prefilled elsewhere from their own tokens. Where all are lost, requests wait for the first one to come back.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence

from engine.coins import seed_of
from engine.errors import ConfigError, GeneratorError, GeneratorLostError, RequestRefusedError
from engine.interfaces import Generator
from engine.types import Completion, GenerateRequest

logger = logging.getLogger(__name__)

REST_S = 0.25
"""How long a lost generator is left alone at first."""
LONGEST_REST_S = 5.0
PATIENCE_S = 600.0
"""How long requests wait while nobody answers at all."""


class _Server:
    """What the router knows of one generator."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.num_trees = 0
        self.rest_s = 0.0
        """0 while it answers."""
        self.back_at = 0.0
        """When it may be asked again."""
        self.loss = ""

    def lose(self, error: GeneratorLostError, *, now: float) -> None:
        if now >= self.back_at:  # requests that were under way as well say nothing new
            self.rest_s = min(2 * self.rest_s or REST_S, LONGEST_REST_S)
            self.back_at = now + self.rest_s
        self.loss = str(error)


class Router:
    """Sends all requests of one affinity key to one generator: where the fewest trees live when it is first seen.

    A request that fails there moves the key to another one, where its retry goes. A generator that is lost before it
    has streamed anything costs no retry: the request goes on elsewhere, or waits.
    """

    def __init__(self, generators: Sequence[Generator], *, patience_s: float = PATIENCE_S) -> None:
        if not generators:
            raise ConfigError("a router needs at least one generator")
        self._servers = [_Server(generator) for generator in generators]
        self._homes: dict[str, _Server] = {}
        self._patience_s = patience_s

    @property
    def num_trees(self) -> int:
        """Those that live somewhere."""
        return len(self._homes)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """As `Generator.generate`. Raises `GeneratorLostError` where nobody has answered for `patience_s`."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._patience_s
        while True:
            server = await self._home(request.affinity_key, give_up_at=give_up_at)
            is_begun = False
            try:
                async with contextlib.aclosing(server.generator.generate(request)) as chunks:
                    async for chunk in chunks:
                        is_begun, server.rest_s = True, 0.0
                        yield chunk
                return
            except asyncio.CancelledError:
                # Who waits for a chunk for too long goes away, and asks again: somebody else.
                self._move(request.affinity_key, server)
                raise
            except RequestRefusedError:
                raise
            except GeneratorLostError as error:
                server.lose(error, now=loop.time())
                self._move(request.affinity_key, server)
                if is_begun:
                    raise
                logger.warning("%s: %s", request.request_id, error)
            except GeneratorError:
                self._move(request.affinity_key, server)
                raise

    def forget(self, affinity_key: str) -> None:
        """The tree is finished."""
        if affinity_key in self._homes:
            self._homes.pop(affinity_key).num_trees -= 1

    async def _home(self, key: str, *, give_up_at: float) -> _Server:
        """Where a key lives; settled where it does not live anywhere, or where its home is resting."""
        loop = asyncio.get_running_loop()
        while True:
            home = self._homes.get(key)
            if home is not None and home.back_at <= loop.time():
                return home
            if awake := [server for server in self._servers if server.back_at <= loop.time()]:
                self._settle(key, awake)
                continue
            first = min(self._servers, key=lambda server: server.back_at)
            if first.back_at > give_up_at:
                raise GeneratorLostError(f"no generator has answered for {self._patience_s:g} s: {first.loss}")
            await asyncio.sleep(first.back_at - loop.time())

    def _move(self, key: str, server: _Server) -> None:
        others = [other for other in self._servers if other is not server]
        if others and self._homes.get(key) is server:
            now = asyncio.get_running_loop().time()
            self._settle(key, [other for other in others if other.back_at <= now] or others)

    def _settle(self, key: str, candidates: Sequence[_Server]) -> None:
        """Fewest trees first; ties by a hash of the key, so that the choice depends on no order of arrival."""
        self.forget(key)

        fewest = min(server.num_trees for server in candidates)
        equal = [server for server in candidates if server.num_trees == fewest]
        home = self._homes[key] = equal[seed_of(0, key) % len(equal)]
        home.num_trees += 1

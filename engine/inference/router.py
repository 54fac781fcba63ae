"""Router: one generator made of many; a tree stays where its prefix is cached."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from engine.coins import seed_of
from engine.errors import ConfigError, GeneratorError
from engine.interfaces import Generator
from engine.types import Completion, GenerateRequest


class Router:
    """Sends all requests of one affinity key to one generator: where the fewest trees live when it is first seen.

    Retries of a failed request go to another generator: the key moves there, and its path is prefilled anew.
    """

    def __init__(self, generators: Sequence[Generator]) -> None:
        if not generators:
            raise ConfigError("a router needs at least one generator")
        self._generators = generators
        self._homes: dict[str, int] = {}
        self._num_homes = [0] * len(generators)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """As `Generator.generate`."""
        number = self._home(request.affinity_key)
        try:
            async with contextlib.aclosing(self._generators[number].generate(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except GeneratorError:
            self._move(request.affinity_key, number)
            raise

    def forget(self, affinity_key: str) -> None:
        """The tree is finished."""
        if affinity_key in self._homes:
            self._num_homes[self._homes.pop(affinity_key)] -= 1

    def _home(self, key: str) -> int:
        if key not in self._homes:
            self._settle(key, range(len(self._generators)))
        return self._homes[key]

    def _move(self, key: str, number: int) -> None:
        others = [other for other in range(len(self._generators)) if other != number]
        if others and self._homes.get(key) == number:
            self.forget(key)
            self._settle(key, others)

    def _settle(self, key: str, candidates: Sequence[int]) -> None:
        """Fewest trees first; ties by a hash of the key, so that the choice depends on no order of arrival."""
        home = min(candidates, key=lambda number: (self._num_homes[number], seed_of(0, key, number)))
        self._homes[key] = home
        self._num_homes[home] += 1

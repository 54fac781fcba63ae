"""Cluster: where actors live. The same actors, asked in the same words, on one machine or on many."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, Protocol, Self

from actors.messages import AnyCall
from actors.process import actor_process
from actors.wire import Caller
from engine.errors import ArpoError
from engine.ports import free_port

Role = Literal["generator", "learner", "rollout", "tools"]


class Cluster(Protocol):
    """`async with cluster:`; leaving ends what is still there."""

    num_rollout_actors: int
    """Actors that grow trees; 0 where the controller does."""
    num_tool_workers: int
    """Actors that run tools; 0 where whoever grows trees does."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...

    async def reserve(self, role: Role, count: int) -> None:
        """Make sure that `count` actors of a role have room. Raises `ConfigError` where they never will."""
        ...

    def actor(self, name: str, start: AnyCall, *, kind: type[ArpoError]) -> AbstractAsyncContextManager[Caller]:
        """An actor for the length of the block, started; calls raise `kind` when it is gone."""
        ...

    async def meeting_point(self) -> str:
        """Where the ranks of one learner find each other, as torch's `init_method`."""
        ...


class LocalCluster:
    """Processes of this machine. Only who starts one can call it, so trees grow in the controller."""

    num_rollout_actors = 0
    num_tool_workers = 0

    def __init__(self, *, logs: Path, threads: int, start_timeout_s: float) -> None:
        self._logs = logs
        self._threads = threads
        self._start_timeout_s = start_timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def reserve(self, role: Role, count: int) -> None:
        pass

    def actor(self, name: str, start: AnyCall, *, kind: type[ArpoError]) -> AbstractAsyncContextManager[Caller]:
        return actor_process(
            name,
            start,
            kind=kind,
            log=self._logs / f"{name}.log",
            threads=self._threads,
            start_timeout_s=self._start_timeout_s,
        )

    async def meeting_point(self) -> str:
        return f"tcp://127.0.0.1:{free_port()}"

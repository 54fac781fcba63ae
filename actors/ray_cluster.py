"""RayCluster: the same actors as Ray actors, in placement groups, on many machines or on a laptop.

Each role has a placement group: its actors start, and start again, in its bundles.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import Role
from actors.config import Resources, RuntimeConfig
from actors.messages import AnyCall, StartGenerator, StartLearner, StartRollouts, StartTools
from actors.ray_actor import (
    NAMESPACE,
    GeneratorActor,
    HostActor,
    LearnerActor,
    RayCaller,
    RolloutActor,
    ToolsActor,
)
from actors.ray_nodes import check_nodes
from actors.wire import Caller
from engine.deadline import within
from engine.errors import ArpoError, ConfigError, boundary
from engine.ports import free_port

CALLS_AT_ONCE = 10_000
"""Of one actor; all of them wait for something most of the time."""
_ROLES: dict[type, tuple[Role, type[HostActor]]] = {
    StartGenerator: ("generator", GeneratorActor),
    StartLearner: ("learner", LearnerActor),
    StartRollouts: ("rollout", RolloutActor),
    StartTools: ("tools", ToolsActor),
}


class RayCluster:
    """`Cluster` on Ray. Actors are named `RUN-PLACE/NAME` in the namespace `arpo`; no two runs share a place."""

    def __init__(self, config: RuntimeConfig, *, run_dir: Path) -> None:
        self._config = config
        place = hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=4).hexdigest()
        self._name = f"{run_dir.name}-{place}"
        self._groups: dict[Role, PlacementGroup] = {}
        self._places: dict[str, int] = {}
        """Which bundle of its role's group an actor has, also when it starts again."""
        self.num_rollout_actors = config.ray.num_rollout_actors
        self.num_tool_workers = config.ray.num_tool_workers

    async def __aenter__(self) -> Self:
        settings = self._config.ray
        if settings.address is not None:
            await _knock(settings.address, timeout_s=settings.connect_timeout_s)
        connecting = asyncio.to_thread(_connect, self._config)
        await within(2 * settings.connect_timeout_s, connecting, name="connecting to the Ray cluster")
        await check_nodes(timeout_s=settings.connect_timeout_s)
        return self

    async def __aexit__(self, *error: object) -> None:
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups.clear()
        await asyncio.to_thread(ray.shutdown)

    async def reserve(self, role: Role, count: int) -> None:
        """As `Cluster.reserve`; what a role had before is given back."""
        if (old := self._groups.pop(role, None)) is not None:
            remove_placement_group(old)
        if not count:
            return
        bundle = _bundle(getattr(self._config.ray, role))
        group = placement_group([bundle] * count, strategy="PACK" if role == "learner" else "SPREAD")
        timeout_s = self._config.ray.connect_timeout_s
        if not await asyncio.to_thread(group.wait, timeout_s):
            remove_placement_group(group)
            free = {name: amount for name, amount in ray.available_resources().items() if name in bundle}
            raise ConfigError(
                f"the Ray cluster has no room for {count} x {bundle} within {timeout_s:g} s; free are {free or 'none'} "
                f"- at $.runtime.ray.{role}"
            )
        self._groups[role] = group
        self._places = {name: place for name, place in self._places.items() if not name.startswith(f"{role}:")}

    @asynccontextmanager
    async def actor(self, name: str, start: AnyCall, *, kind: type[ArpoError]) -> AsyncGenerator[Caller, None]:
        """As `Cluster.actor`. Raises `StalledError` where it does not start in time."""
        role, kind_of_actor = _ROLES[type(start)]
        resources: Resources = getattr(self._config.ray, role)
        key = f"{role}:{name}"
        place = self._places.setdefault(key, sum(other.startswith(f"{role}:") for other in self._places))
        full_name = self.full_name(name)
        make = (
            ray.remote(kind_of_actor)
            .options(
                name=full_name,
                namespace=NAMESPACE,
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                resources=resources.custom or None,
                max_concurrency=CALLS_AT_ONCE,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._groups[role], placement_group_bundle_index=place
                ),
            )
            .remote
        )
        with boundary(kind, f"{name} cannot be started"):  # its last life may still hold its name
            handle = await asyncio.to_thread(make, None if _is_job() else os.getcwd())
        caller = RayCaller(full_name, handle)
        try:
            timeout_s = self._config.start_timeout_s
            await within(timeout_s, caller.call(self._with_names(start), kind), name=f"the start of {name}")
            yield caller
        finally:
            ray.kill(handle)

    def full_name(self, name: str) -> str:
        """The name of an actor in the cluster."""
        return f"{self._name}/{name}"

    def _with_names(self, start: AnyCall) -> AnyCall:
        if not isinstance(start, StartRollouts):
            return start
        generators, workers = (tuple(map(self.full_name, names)) for names in (start.generators, start.tool_workers))
        return msgspec.structs.replace(start, generators=generators, tool_workers=workers)

    async def meeting_point(self) -> str:
        """A port of the node that has the first rank."""
        strategy = PlacementGroupSchedulingStrategy(self._groups["learner"], placement_group_bundle_index=0)
        asked = ray.remote(_meeting_point).options(num_cpus=0, scheduling_strategy=strategy).remote()
        host, port = await within(self._config.ray.connect_timeout_s, asked, name="looking for a port")
        return f"tcp://{host}:{port}"


def _connect(config: RuntimeConfig) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    env: dict[str, Any] = {"OMP_NUM_THREADS": str(config.threads)}
    if not _is_job():  # the working directory of a job is on the path of its actors already
        env["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    try:
        ray.init(
            address=config.ray.address,
            namespace=NAMESPACE,
            runtime_env=None if _is_job() else {"env_vars": env},
            log_to_driver=False,
            logging_level=logging.ERROR,  # it would warn that it leaves our signal handlers alone
        )
    except (ConnectionError, RayError, ValueError) as error:
        raise ConfigError(f"no Ray cluster: {error} - at $.runtime.ray.address") from error


def _is_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


async def _knock(address: str, *, timeout_s: float) -> None:
    """Fail at once where nobody listens, which Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, ValueError, TimeoutError) as error:
        reason = str(error) or f"no answer within {timeout_s:g} s"
        raise ConfigError(f"no Ray cluster at {address}: {reason} - at $.runtime.ray.address") from None
    writer.close()


def _bundle(resources: Resources) -> dict[str, float]:
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    return {name: amount for name, amount in wanted.items() if amount}


def _meeting_point() -> tuple[str, int]:
    """A port of the node that this runs on."""
    host = ray.util.get_node_ip_address()
    return host, free_port(host)

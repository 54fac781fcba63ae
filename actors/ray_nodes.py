"""What the nodes of a Ray cluster have: the packages that actors need, in the versions of the controller."""

import asyncio
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.deadline import within
from engine.errors import ConfigError

NEEDED = ("aiohttp", "megatron-core", "msgspec", "numpy", "safetensors", "tokenizers", "torch")
"""Distributions that an actor of any role imports, or whose versions decide what it computes."""
MISSING = "none"


def versions() -> dict[str, str]:
    """Of this process: Python, and each distribution that is needed."""
    found = {"python": platform.python_version()}
    for name in NEEDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = MISSING
    return found


async def check_nodes(*, timeout_s: float) -> None:
    """Raise `ConfigError`, naming the node, where one has not what the controller has."""
    here = versions()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    there = await within(
        timeout_s, asyncio.gather(*(_asked(node["NodeID"]) for node in nodes)), name="asking the nodes what they have"
    )
    for node, found in zip(nodes, there, strict=True):
        if wrong := [f"{name} {found[name]} (here {here[name]})" for name in here if found[name] != here[name]]:
            raise ConfigError(
                f"node {node['NodeManagerAddress']} has {', '.join(wrong)}: all nodes need what the controller has"
            )


async def _asked(node_id: str) -> dict[str, str]:
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    asked: Any = ray.remote(versions).options(num_cpus=0, scheduling_strategy=strategy).remote()
    return await asked

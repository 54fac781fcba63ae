"""Environment: what this machine has, for a person who has no configuration yet."""

from collections.abc import Iterator

from actors.doctor.finding import Finding, ok, refused, warning
from actors.doctor.machine import SHARED_MEMORY, Machine
from actors.doctor.sizes import GIB, size
from actors.doctor.tools import isolation_here

NEEDED = ("torch", "megatron-core", "msgspec", "aiohttp", "pyarrow", "tokenizers", "safetensors")
OPTIONAL = {
    "sglang": "the embedded engine generates, unless generator.python names an environment that has it",
    "ray": "runs stay on this machine; pip install 'arpo-engine[ray]'",
    "flash-attn": "torch's own attention trains; pip install --no-build-isolation 'arpo-engine[gpu]'",
}
"""What is missing without them."""
ENOUGH_FILES = 4096
ENOUGH_SHARED = GIB


def check_environment(machine: Machine) -> Iterator[Finding]:
    yield ok("python", machine.python)
    for name in NEEDED:
        found = machine.version(name)
        yield ok(name, found) if found else refused(name, "not installed: 'make install', or pip install arpo-engine")
    for name, instead in OPTIONAL.items():
        found = machine.version(name)
        yield ok(name, found) if found else ok(name, f"not installed: {instead}")
    if machine.gpus:
        for number, gpu in enumerate(machine.gpus):
            yield ok(f"GPU {number}", f"{gpu.name}, {size(gpu.num_bytes)}")
    else:
        yield ok("GPU", "none that torch can use: everything runs on the CPU")
    yield ok("memory", size(machine.memory_bytes))
    yield isolation_here(machine)
    yield from _limits(machine)


def _limits(machine: Machine) -> Iterator[Finding]:
    free, key = machine.free_bytes(SHARED_MEMORY), str(SHARED_MEMORY)
    if free is None:
        yield warning(key, "not there: published weights go through a temporary folder")
    elif free < ENOUGH_SHARED:
        yield warning(key, f"{size(free)} free: published weights may have to go through a temporary folder")
    else:
        yield ok(key, f"{size(free)} free")
    files = machine.max_open_files
    if files < ENOUGH_FILES:
        yield warning("open files", f"{files:,} for a process: many connections to servers need more, see 'ulimit -n'")
    else:
        yield ok("open files", f"{files:,} for a process")

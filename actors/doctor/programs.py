"""Programs: whether SGLang and Ray are there, whether servers answer, and whether a process may open what it must."""

import asyncio
import re
import shutil
import sys
from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, refused, warning
from actors.doctor.hosts import ANSWER_S, listens, num_free_ports
from actors.sglang_server import REMEDY
from engine.inference.embedded import EmbeddedConfig
from engine.inference.sglang import is_ready
from engine.inference.sglang_config import SglangConfig
from engine.inference.sglang_http import NEEDED

SPARE_FILES = 256
"""A process has libraries, logs and tools open besides its connections."""
COMPILERS = ("cc", "gcc", "clang")


def check_programs(case: Case) -> Iterator[Finding]:
    generator = case.config.generator
    if isinstance(generator, SglangConfig):
        yield from _servers(case, generator) if generator.urls else _sglang(case, generator)
        yield from _files(case)
    else:
        yield from _embedded(case, generator)
    if case.is_on_ray:
        yield from _ray(case)
    elif (threads := case.config.runtime.threads) > (cores := case.machine.num_cores):
        text = f"{threads} threads of each process, and there are {cores} cores: that costs a factor"
        yield warning("runtime.threads", case.here(text))


def _sglang(case: Case, generator: SglangConfig) -> Iterator[Finding]:
    python = generator.python or sys.executable
    found = case.machine.sglang_version(generator.python)
    if found is None:
        yield case.unfit("generator.python", f"{python} has no sglang: {REMEDY}")
    elif _numbers(found) < _numbers(NEEDED):
        yield case.unfit("generator.python", f"{python} has sglang {found}, and {NEEDED} or newer is needed")
    else:
        yield ok("generator.python", f"{python} has sglang {found}")
    if not case.is_on_ray and (free := num_free_ports(case.num_launched)) < case.num_launched:
        yield case.unfit("runtime.num_generators", f"{case.num_launched} servers need a port each, {free} are free")


def _servers(case: Case, generator: SglangConfig) -> Iterator[Finding]:
    async def ask() -> list[bool]:
        asked = (is_ready(url, api_key=generator.api_key, timeout_s=ANSWER_S) for url in generator.urls)
        return await asyncio.gather(*asked)

    for url, answers in zip(generator.urls, asyncio.run(ask()), strict=True):
        if answers:
            yield ok("generator.urls", f"{url} answers")
        else:
            yield case.unfit("generator.urls", f"nobody answers at {url} within {ANSWER_S:g} s")


def _embedded(case: Case, generator: EmbeddedConfig) -> Iterator[Finding]:
    """What the engine refuses when it starts: its C kernels are for float32 on a CPU."""
    has_compiler = any(shutil.which(name) for name in COMPILERS)
    fits = case.generator_device == "cpu" and generator.dtype in ("auto", "float32")
    for key, is_asked in (
        ("generator.kernels", generator.kernels == "native"),
        ("generator.deterministic", generator.deterministic),
    ):
        if is_asked and not fits:
            yield refused(key, "it needs the C kernels, which are for float32 on a CPU")
        elif is_asked and generator.kernels == "torch":
            yield refused(key, "it needs the C kernels, and generator.kernels is 'torch'")
        elif is_asked and not has_compiler:
            yield case.unfit(key, f"there is no C compiler ({', '.join(COMPILERS)})")
    if fits and generator.kernels == "auto" and not has_compiler:
        yield warning("generator.kernels", "there is no C compiler: torch is used, which is several times slower")


def _files(case: Case) -> Iterator[Finding]:
    """Every path that is sampled holds a connection, in the process that speaks with its server."""
    config, limit = case.config, case.machine.max_open_files
    paths = (config.train.max_staleness + 1) * config.train.batch_size * config.rollout.size
    clients = max(case.num_launched or config.runtime.ray.num_rollout_actors, 1) if case.is_on_ray else 1
    needed = -(-paths // clients) + SPARE_FILES
    if needed > limit:
        text = f"{limit:,} for a process, and one may need {needed:,}: raise it with 'ulimit -n {needed}'"
        yield warning("open files", case.here(text))
    else:
        yield ok("open files", case.here(f"{limit:,} for a process, and {needed:,} may be needed"))


def _ray(case: Case) -> Iterator[Finding]:
    if case.machine.version("ray") is None:
        yield case.unfit("runtime.backend", "ray is not installed: pip install 'arpo-engine[ray]'")
    address = case.config.runtime.ray.address
    if address is not None:
        if listens(address):
            yield ok("runtime.ray.address", f"{address} answers")
        else:
            yield case.unfit("runtime.ray.address", f"nobody answers at {address} within {ANSWER_S:g} s")


def _numbers(version: str) -> list[int]:
    """`0.5.21.post1` is 0, 5, 21, 1."""
    return [int(part) for part in re.findall(r"\d+", version)]

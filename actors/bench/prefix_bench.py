"""`arpo bench prefix`: of what could be read from the radix cache, how much is read, on each backend.

| figure                  | what it is                                                                                |
|-------------------------|-------------------------------------------------------------------------------------------|
| `reused_fraction`       | shareable prompt tokens that were read, of all shareable ones; the smaller of the arms'    |
| `ARM_reused_fraction`   | the same of one arm                                                                       |
| `ARM_fork_fraction`     | the same of the first requests of branches                                                |
| `stale_tokens`          | read, and computed by older weights or by nobody, in all arms: 0                          |

`prefix_account` says what shareable means, and what else the records count; `prefix_rollouts` what is grown. A request
that reads more than was shareable when it was sent makes up for nothing that another one misses.

SGLang makes the tokens of a request readable when its prefill is done and again when it ends, not in between. A branch
at the end of a probe begins while its parent runs, and reads the probe because the parent's request was ended there and
another one goes on (`engine.inference.sglang`). What only running requests had, and was computed anew, is
`missed_of_running_tokens`.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import msgspec

from actors.bench.bench import Bench, Record, Records
from actors.bench.prefix_account import Account, Reading, account
from actors.bench.prefix_materials import Materials, Size
from actors.bench.prefix_rollouts import KINDS, REVISIT, Grown, grow
from actors.bench.prefix_servers import find_python, sglang_servers
from engine.errors import GeneratorError
from engine.inference.embedded import EmbeddedConfig
from engine.inference.sglang_config import SglangConfig

NO_SGLANG = "no Python with sglang here: 'make sglang' makes one, --sglang-python names another"


def benches(folder: Path, *, is_quick: bool, sglang_python: str | None = None) -> Sequence[Bench]:
    """Both backends on one workload; without an SGLang the embedded engine alone. Quick: a quarter of the trees, once.

    `sglang_python` is an interpreter that has sglang; unset looks for one (`find_python`).
    """
    prefix = PrefixReuse(folder, Size(num_trees=4 if is_quick else 16))
    arms = {"embedded": prefix.embedded}
    python = find_python(sglang_python)
    if python is not None:
        arms["sglang"] = partial(prefix.sglang, python=python)
    return (
        Bench(
            name="prefix",
            arms=arms,
            repetitions=1 if is_quick else 3,
            figures=figures,
            skipped={} if python is not None else {"sglang": NO_SGLANG},
        ),
    )


class PrefixReuse:
    """The arms; what they share is made at the first run."""

    def __init__(self, folder: Path, size: Size) -> None:
        self._folder = folder
        self._size = size

    def embedded(self, seed: int) -> Record:
        config = EmbeddedConfig(device="cpu", max_kv_tokens=self._size.max_kv_tokens)
        begin = time.perf_counter()
        grown = asyncio.run(grow(self._materials, config, folder=self._folder / f"embedded-{seed}", seed=seed))
        page_sizes = dict.fromkeys(grown.servers, 1)
        return self._record(grown, page_sizes=page_sizes, wall_s=time.perf_counter() - begin)

    def sglang(self, seed: int, *, python: str) -> Record:
        return asyncio.run(self._sglang(seed, python))

    async def _sglang(self, seed: int, python: str) -> Record:
        config = SglangConfig(python=python, max_kv_tokens=self._size.max_kv_tokens)
        folder = self._folder / f"sglang-{seed}"
        servers = sglang_servers(
            config, count=self._size.num_generators, model_path=self._materials.models[0], logs=folder / "logs"
        )
        async with servers as page_sizes:
            config = msgspec.structs.replace(config, urls=tuple(page_sizes))
            begin = time.perf_counter()
            grown = await grow(self._materials, config, folder=folder, seed=seed)
            return self._record(grown, page_sizes=page_sizes, wall_s=time.perf_counter() - begin)

    def _record(self, grown: Grown, *, page_sizes: Mapping[str, int], wall_s: float) -> Record:
        if grown.num_failed:
            raise GeneratorError(f"{grown.num_failed} trajectories failed: what was read from caches says nothing")
        found = account(grown.log.happenings, page_sizes=page_sizes)
        return record(grown, found, max_kv_tokens=self._size.max_kv_tokens) | {"wall_s": wall_s}

    @cached_property
    def _materials(self) -> Materials:
        return Materials(self._folder, self._size)


def record(grown: Grown, found: Account, *, max_kv_tokens: int) -> Record:
    """One run as numbers; `cache_share` is how much of its room the fullest server would need if it forgot nothing."""
    kinds = grown.kinds()
    steady = [reading for reading in found.readings if not reading.is_straddling]
    updated = [reading for reading in steady if reading.version]
    revisits = [reading for reading in steady if kinds[reading.number] == REVISIT]
    by_kind = {kind: [reading for reading in steady if kinds[reading.number] == kind] for kind in KINDS}
    return {
        "reused_fraction": reused_fraction(steady),
        "trees": float(len(grown.groups)),
        "trajectories": float(sum(len(group.trajectories) for group in grown.groups)),
        "requests": float(len(found.readings)),
        "straddling_requests": float(len(found.readings) - len(steady)),
        **{f"{kind}_requests": float(len(readings)) for kind, readings in by_kind.items()},
        "revisit_requests": float(len(revisits)),
        "prompt_tokens": _sum(steady, "prompt"),
        "shareable_tokens": _sum(steady, "shareable"),
        "missed_tokens": _sum(steady, "missed"),
        "missed_of_running_tokens": _sum(steady, "missed_of_running"),
        "missed_of_retracted_tokens": _sum(steady, "missed_of_retracted"),
        **{f"{kind}_shareable_tokens": _sum(readings, "shareable") for kind, readings in by_kind.items()},
        **{f"{kind}_missed_tokens": _sum(readings, "missed") for kind, readings in by_kind.items()},
        "reused_tokens": _sum(steady, "reused"),
        "twice_tokens": _sum(steady, "twice"),
        "updated_requests": float(len(updated)),
        "updated_reused_tokens": _sum(updated, "reused"),
        "revisit_prompt_tokens": _sum(revisits, "prompt"),
        "revisit_reused_tokens": _sum(revisits, "reused"),
        "stale_tokens": _sum(steady, "stale"),
        "evicted_tokens": float(sum(one.num_evicted_tokens for one in grown.statistics)),
        "cache_share": max(found.num_distinct.values()) / max_kv_tokens,
    }


def reused_fraction(readings: Sequence[Reading]) -> float:
    """Shareable tokens that were read, of all shareable ones; 1 where there are none."""
    shareable = _sum(readings, "shareable")
    return 1.0 - _sum(readings, "missed") / shareable if shareable else 1.0


def figures(records: Records) -> dict[str, float]:
    """Of all repetitions of each arm together."""
    found: dict[str, float] = {}
    for arm, runs in records.items():
        found[f"{arm}_reused_fraction"] = _fraction(runs, "")
        found[f"{arm}_fork_fraction"] = _fraction(runs, "fork_")
    stale = sum(run["stale_tokens"] for runs in records.values() for run in runs)
    return {"reused_fraction": min(found[f"{arm}_reused_fraction"] for arm in records), **found, "stale_tokens": stale}


def _fraction(runs: Sequence[Record], kind: str) -> float:
    shareable = sum(run[f"{kind}shareable_tokens"] for run in runs)
    return 1.0 - sum(run[f"{kind}missed_tokens"] for run in runs) / shareable if shareable else 1.0


def _sum(readings: Sequence[Reading], name: str) -> float:
    return float(sum(getattr(reading, name) for reading in readings))

"""GPUs: who takes which, and whether there are enough.

On Ray each actor has GPUs of its own. Processes of one machine see all of its GPUs: rank r of the learner takes the
r-th, an embedded generator the first, and every server begins at `--base-gpu-id`, the same for all of them.
"""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, refused, warning
from actors.doctor.layout import learners

ARGS = "generator.args"
COUNT = "runtime.num_generators"


def check_gpus(case: Case) -> Iterator[Finding]:
    if "cuda" not in (case.generator_device, case.learner_device):
        yield ok("gpus", "none is needed: everything runs on the CPU")
    elif case.is_on_ray:
        yield from _on_ray(case)
    else:
        yield from _on_this_machine(case)


def _on_ray(case: Case) -> Iterator[Finding]:
    ray, world_size = case.config.runtime.ray, case.config.learner.world_size
    needed = case.sglang.num_gpus if case.generator_device == "cuda" else 0
    given = ray.generator.gpus
    if case.num_launched and given != needed:
        text = f"a generator needs {needed}, and is given {given:g}"
        yield (refused if given < needed else warning)("runtime.ray.generator.gpus", text)
    if ray.learner.gpus == 0:
        yield warning("runtime.ray.learner.gpus", "the learner's ranks get no GPU: they train on CPUs")
    elif ray.learner.gpus != 1:
        text = f"a rank needs 1, and is given {ray.learner.gpus:g}"
        yield (refused if ray.learner.gpus < 1 and world_size > 1 else warning)("runtime.ray.learner.gpus", text)
    total = case.num_launched * given + world_size * ray.learner.gpus
    parts = f"{case.num_launched} x {given:g} for generators, {world_size} x {ray.learner.gpus:g} for the learner"
    if case.num_gpus is None:
        yield ok("gpus", f"{total:g} are needed: {parts}")
    elif total > case.num_gpus:
        yield refused("gpus", f"{total:g} are needed, {parts}, and there are {case.num_gpus}")
    else:
        yield ok("gpus", f"{total:g} of {case.num_gpus} are needed: {parts}")


def _on_this_machine(case: Case) -> Iterator[Finding]:
    there = case.num_gpus or len(case.machine.gpus)
    seats = seats_of(case)
    needed = max(seats, default=-1) + 1
    sharing = "; ".join(f"GPU {gpu} has {', '.join(names)}" for gpu, names in sorted(seats.items()) if len(names) > 1)
    too_large = [(key, config.world_size) for key, config in learners(case) if config.world_size > there]
    if not there:
        yield warning("gpus", f"{needed} are needed, and this machine has none")
        too_large = []
    elif needed > there and not too_large:
        yield refused(ARGS, f"a server begins at GPU {case.sglang.base_gpu} and needs {needed}, and there are {there}")
    elif not too_large:
        yield ok("gpus", f"{needed} of {there} are needed")
    for key, world_size in too_large:
        yield refused(key, f"{world_size} ranks take a GPU each, and there are {there}")
    if sharing:
        is_meant = needed == there and case.num_launched == 1
        yield (ok if is_meant else warning)(sharing_key(case), f"shared: {sharing}")


def sharing_key(case: Case) -> str:
    """What to change where processes of this machine share a GPU."""
    return COUNT if case.num_launched > 1 else "gpus"


def seats_of(case: Case) -> dict[int, list[str]]:
    """For each GPU of this machine that is taken, who takes it."""
    seats: dict[int, list[str]] = {}
    if case.learner_device == "cuda":
        for rank in range(case.config.learner.world_size):
            seats.setdefault(rank, []).append(f"learner-{rank}")
    if case.generator_device == "cuda":
        for number in range(case.num_launched):
            for place in range(case.sglang.num_gpus):
                seats.setdefault(case.sglang.base_gpu + place, []).append(f"generator-{number}")
    return seats

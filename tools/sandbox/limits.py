"""Limits of one process, and the memory of a whole call."""

import os
import resource

_PAGE = os.sysconf("SC_PAGE_SIZE")


def prepare() -> int:
    """While /proc can be read: let the kernel take this process first where the machine runs out of memory, before
    whoever called it. Returns the bytes that it has mapped."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * _PAGE


def bind(limits: dict[str, int], *, address_space: int) -> None:
    """Set `limits` (names of `resource` to values) and the address space; one that is lower already stays."""
    for name, value in {**limits, "RLIMIT_AS": address_space}.items():
        kind = getattr(resource, name)
        _, ceiling = resource.getrlimit(kind)
        soft = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        # The soft limit on CPU time is a signal that names itself, and can be caught; the hard one cannot.
        is_room = ceiling == resource.RLIM_INFINITY or soft < ceiling
        hard = soft + 1 if name == "RLIMIT_CPU" and is_room else soft
        resource.setrlimit(kind, (soft, hard))


def private_bytes(pids: list[int], *, limit: int) -> int:
    """Memory of processes that is in none of the files they map; pages that several share count once.

    What is cheap to read counts a shared page each time: only where that is above `limit` is it counted exactly.
    """
    rough = sum(_anonymous_bytes(pid) for pid in pids)
    return rough if rough <= limit else sum(_share_bytes(pid) for pid in pids)


def _anonymous_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:
        return 0  # it has ended
    return (resident - shared) * _PAGE


def _share_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            values = dict(line.split(":", 1) for line in file if ":" in line[:24])
        return int(values["Pss_Anon"].split()[0]) << 10
    except (OSError, KeyError):
        return _anonymous_bytes(pid)  # it has ended, or hides

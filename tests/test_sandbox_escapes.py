"""The sandbox holds: what a program may try is contained, its neighbours are unharmed, and calls are as fast after it.

What needs namespaces is skipped, with the reason, where there are none; the fallback is tried on every machine.
"""

import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ToolError
from tests import sandbox_attempts as attempts
from tests.sandbox_attempts import Attempt
from tools.fork_server import ForkServer
from tools.python import run_python
from tools.python_config import PythonConfig
from tools.python_isolation import examine_isolation

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
ROOT = Path(__file__).resolve().parent.parent
LIMITS: dict[str, Any] = {"memory_mib": 256, "disk_mib": 16, "max_processes": 32, "max_written_mib": 4, "cpu_s": 2}
CANARY = "canary-in-the-environment"
NEIGHBOUR = "import time\nfor _ in range(30): time.sleep(0.02)\nsum(range(1000))"


class Cell:
    """One server, and programs that run in it as the tool runs them."""

    def __init__(self, **keys: Any) -> None:
        self.config = PythonConfig(preload=("numpy",), **LIMITS, **keys)
        self._server = ForkServer(self.config)
        self._runner = asyncio.Runner()

    def run(self, *codes: str, timeout_s: float = 30.0) -> list[str]:
        """What programs that run at the same time come to: their text, or `failed: ` and the reason."""
        return self._runner.run(self._run(codes, timeout_s))

    def close(self) -> None:
        self._runner.run(self._server.aclose())
        self._runner.close()

    async def _run(self, codes: tuple[str, ...], timeout_s: float) -> list[str]:
        return await asyncio.gather(*(self._one(code, timeout_s) for code in codes))

    async def _one(self, code: str, timeout_s: float) -> str:
        try:
            async with asyncio.timeout(timeout_s):
                return await run_python(code, server=self._server, config=self.config)
        except ToolError as error:
            return f"failed: {error}"
        except TimeoutError:
            return "failed: deadline"


@pytest.fixture(scope="module")
def cell() -> Iterator[Cell]:
    found = examine_isolation(PythonConfig())
    if not found.is_full:
        pytest.skip(f"this machine gives no namespaces: {found.reason}")
    cell = Cell(require_isolation=True)
    yield cell
    cell.close()


@pytest.fixture(scope="module")
def open_cell() -> Iterator[Cell]:
    cell = Cell(isolation="none")
    yield cell
    cell.close()


@pytest.fixture(scope="module")
def filtered() -> Iterator[Cell]:
    cell = Cell(isolation="filters")
    yield cell
    cell.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Definitions in front of an attempt: where there is something on this machine that it may not reach."""
    folder = tmp_path_factory.mktemp("host")
    for name in ("run/config.json", "data/answers.jsonl"):
        (folder / name).parent.mkdir()
        (folder / name).write_text(CANARY)
    home = Path.home() / f".arpo-canary-{os.getpid()}"
    home.write_text(CANARY)
    os.environ["ARPO_CANARY"] = CANARY
    abstract = f"\0arpo-canary-{os.getpid()}"
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as unnamed,
        subprocess.Popen(waiting, stdin=subprocess.PIPE) as other,
    ):
        unix.bind(str(folder / "socket"))
        unnamed.bind(abstract)
        unix.listen()
        unnamed.listen()
        names = {
            "HOME": str(home),
            "RUN": str(folder / "run/config.json"),
            "ANSWERS": str(folder / "data/answers.jsonl"),
            "CHECKOUT": str(ROOT),
            "PORT": tcp.getsockname()[1],
            "SOCKET": str(folder / "socket"),
            "ABSTRACT": abstract,
            "PID": other.pid,
        }
        yield "".join(f"{name} = {value!r}\n" for name, value in names.items())
        other.communicate()
    home.unlink()
    del os.environ["ARPO_CANARY"]


def named(group: tuple[Attempt, ...]) -> Any:
    return pytest.mark.parametrize("attempt", group, ids=lambda attempt: attempt.name)


@named((*attempts.FILES, *attempts.NETWORK, *attempts.PROCESSES, *attempts.POWERS))
def test_an_attempt_is_contained(attempt: Attempt, cell: Cell, world: str) -> None:
    assert cell.run(world + attempt.program) == ["contained"]


@pytest.mark.skipif(os.geteuid() != 0, reason="what they attempt is root's")
@named(attempts.HARMLESS)
def test_the_same_attempt_succeeds_without_isolation(attempt: Attempt, open_cell: Cell, world: str) -> None:
    assert open_cell.run(world + attempt.program) == ["escaped"]


def test_no_file_in_sight_holds_a_canary_and_no_variable_does(cell: Cell) -> None:
    code = f"""
import os
found = [n for n, v in os.environ.items() if {CANARY!r} in v]
for folder, _, names in os.walk('/'):
    if folder.startswith(('/proc', '/usr', '/lib')) or '/lib/python3' in folder:
        continue
    found += [name for name in names if 'canary' in name or 'answers' in name]
found
"""
    assert cell.run(code) == ["[]"]


# -- bombs: each beside a neighbour -----------------------------------------------------------------------------------

FORKS = "import os, time\nn = 0\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
BOMBS: dict[str, tuple[str, str]] = {
    "forks": (FORKS + "except OSError: print(n)", "31"),
    "forks without end": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "failed: deadline"),
    "threads": (
        "import os, threading, time\nn = 0\ntry:\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n        n += 1\n"
        "except RuntimeError:\n    os.write(1, str(n < 32).encode())\n    os._exit(0)",
        "True",
    ),
    "memory": ("b = []\nwhile True: b.append(bytearray(1 << 20))", "failed: MemoryError"),
    "memory of many processes": (
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0: break\nb = bytearray(b'x' * (90 << 20))\n"
        "time.sleep(60)",
        "failed: killed: more than 256 MiB of memory",
    ),
    "disk": (
        "import os\nn = 0\ntry:\n    while True:\n        with open(f'f{n}', 'wb') as f: f.write(b'x' * (1 << 20))\n"
        "        n += 1\nexcept OSError: print(n <= 16)",
        "True",
    ),
    "disk by /dev/shm": (
        "n = 0\ntry:\n    while True:\n        with open(f'/dev/shm/f{n}', 'wb') as f: f.write(b'x' * (1 << 20))\n"
        "        n += 1\nexcept OSError: print(n <= 16)",
        "True",
    ),
    "one large file": ("open('f', 'wb').truncate(1 << 40)", "failed: OSError: [Errno 27] File too large"),
    "names of files": (
        "n = 0\ntry:\n    while True:\n        open(f'f{n}', 'w').close()\n        n += 1\n"
        "except OSError: print(n < 17000)",
        "True",
    ),
    "endless output": ("while True: print('x' * 100_000)", "failed: killed: more than 4 MiB of output"),
    "endless errors": (
        "import sys\nwhile True: sys.stderr.write('x' * 100_000)",
        "failed: killed: more than 4 MiB of output",
    ),
    "output of children": (
        "import os\nos.fork()\nos.fork()\nwhile True: os.write(1, b'x' * 65536)",
        "failed: killed: more than 4 MiB of output",
    ),
    "deafness": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: signal.sigwait([10])",
        "failed: deadline",
    ),
    "a long sleep of children": (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0: os.setsid()\ntime.sleep(600)",
        "failed: deadline",
    ),
    "time of the processor": ("while True: pass", "failed: killed: more than 2 s of CPU time"),
    "open files": (
        "k = []\ntry:\n    while True: k.append(open('/dev/null'))\nexcept OSError: print(len(k) < 64)",
        "True",
    ),
    "recursion": ("import sys\nsys.setrecursionlimit(1 << 30)\ndef f(): f()\nf()", "failed: "),
}


LISTING = "import os\nprint(os.listdir('/tmp'), os.listdir('/dev/shm'))"
"""Both are empty, but for an interpreter that lies below /tmp."""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_harms_no_neighbour(name: str, cell: Cell) -> None:
    code, expected = BOMBS[name]
    clean = cell.run(LISTING)
    text, neighbour = cell.run(code, NEIGHBOUR, timeout_s=8.0)
    assert neighbour == "499500"
    assert text.startswith(expected)
    assert cell.run(LISTING) == clean


# -- what is left behind ----------------------------------------------------------------------------------------------

DAEMON = """
import subprocess, sys
child = "import os, time; os.setsid(); os.fork() and os._exit(0); print({marker!r}, flush=True); time.sleep(600)"
with subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE) as process:
    print(process.stdout.readline().decode())
    process.stdout.close()
"""


def running(marker: str) -> list[int]:
    """Processes of this machine with that on their command line."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return found


def test_a_daemon_ends_with_its_call(cell: Cell) -> None:
    marker = f"daemon-{os.getpid()}"
    assert cell.run(DAEMON.format(marker=marker)) == [marker]
    assert running(marker) == []


def test_the_same_daemon_outlives_its_call_without_isolation(open_cell: Cell) -> None:
    marker = f"outliving-{os.getpid()}"
    assert open_cell.run(DAEMON.format(marker=marker)) == [marker]
    (daemon,) = running(marker)
    os.kill(daemon, signal.SIGKILL)


def test_32_bit_calls_are_the_end(cell: Cell) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("there is no such instruction")
    # mov eax, 20; int 0x80; ret
    code = "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
    code += "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    assert cell.run(code) == ["failed: killed by SIGSYS"]


POISONS = {
    "a constant": ("import math\nmath.pi = 3", "import math\nround(math.pi, 2)", "3.14"),
    "a builtin": ("import builtins\nbuiltins.len = lambda x: 0", "len([1])", "1"),
    "a module": ("import sys\nsys.modules['json'] = None", "import json\njson.dumps([1])", "[1]"),
    "a library": ("import numpy\nnumpy.sum = lambda x: 0", "import numpy\nint(numpy.sum([1, 2]))", "3"),
    "a file": ("open('/tmp/math.py', 'w').write('pi = 3')", "import os\nos.path.exists('/tmp/math.py')", "False"),
    "a user site": (
        "import os, site\np = site.getusersitepackages()\nos.makedirs(p)\nopen(p + '/x.py', 'w')",
        "import os, site\nos.path.exists(site.getusersitepackages())",
        "False",
    ),
    "a semaphore": (
        "import multiprocessing as m\nprint(m.Lock())\nimport os\nos._exit(0)",
        "import os\n[name for name in os.listdir('/dev/shm') if name.startswith('sem.')]",
        "[]",
    ),
    "a path": ("import sys\nsys.path.insert(0, '/tmp')", "import sys\n'/tmp' in sys.path", "False"),
    "a variable": ("import os\nos.environ['PYTHONPATH'] = '/tmp'", "import os\n'PYTHONPATH' in os.environ", "False"),
    "a mask": ("import os\nos.umask(0o777)", "import os\noct(os.umask(0))", "0o22"),
    "chance": ("import random\nrandom.seed(0)", "import random\nrandom.random() != random.Random(0).random()", "True"),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_call_does_not_poison_the_next(name: str, cell: Cell) -> None:
    poison, probe, expected = POISONS[name]
    (first,) = cell.run(probe)
    cell.run(poison)
    assert (first, *cell.run(probe)) == (expected, expected)


def test_neighbours_do_not_meet(cell: Cell) -> None:
    listen = "import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.bind(chr(0) + 'meet')\ns.listen()\n"
    listen += "open('/tmp/meet', 'w').close()\ntime.sleep(1)\n'waited'"
    look = "import socket, time\ntime.sleep(0.5)\nsocket.socket(socket.AF_UNIX).connect(chr(0) + 'meet')"
    assert cell.run(listen, look) == ["waited", "failed: ConnectionRefusedError: [Errno 111] Connection refused"]


def test_calls_are_as_fast_afterwards(cell: Cell) -> None:
    fresh = Cell(require_isolation=True)

    def median_s(cell: Cell) -> float:
        def once() -> float:
            began_at = time.perf_counter()
            assert cell.run("6 * 7") == ["42"]
            return time.perf_counter() - began_at

        return statistics.median(once() for _ in range(40))

    try:
        fresh.run("1")
        pairs = [(median_s(cell), median_s(fresh)) for _ in range(3)]
    finally:
        fresh.close()
    assert min(used / new for used, new in pairs) < 1.5


# -- without namespaces -----------------------------------------------------------------------------------------------

WITHOUT_NAMESPACES = tuple(
    attempt
    for attempt in attempts.HARMLESS
    if attempt.name
    not in (
        "another process in /proc",
        "a signal to the parent",
        "priority",
        "to be root",
        "groups",
        "to make a device",
    )
)
"""All but what only another user, or a namespace of processes, keeps from a program."""


@named(WITHOUT_NAMESPACES)
def test_filters_contain_what_they_can(attempt: Attempt, filtered: Cell, world: str) -> None:
    assert filtered.run(world + attempt.program) == ["contained"]


def test_filters_let_no_daemon_out_of_its_group(filtered: Cell) -> None:
    marker = f"filtered-{os.getpid()}"
    (text,) = filtered.run(DAEMON.format(marker=marker).replace("os.setsid(); ", ""))
    assert text == marker
    assert running(marker) == []
    # A leader of a group cannot leave it anyway.
    leave = "import os\nif os.fork() == 0:\n    os.setsid()\n    os._exit(0)\nos.waitstatus_to_exitcode(os.wait()[1])"
    assert filtered.run(leave) == ["1"]

"""The python tool, in real processes: echo, errors, limits, and that nothing outlives a call.

What holds for any degree of isolation runs under the one that this machine gives; tests that meet a program through a
file of the host run under none. Isolation itself is the matter of `test_sandbox_escapes.py`.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ToolError
from engine.types import ToolCall, ToolResult
from tools.executor import Executor
from tools.fork_server import ForkServer
from tools.python import PythonConfig, python_tool, run_python


def config_of(**keys: Any) -> PythonConfig:
    """Without libraries, whose import takes a second."""
    return PythonConfig(**{"preload": (), **keys})


def in_turn(*codes: str, **keys: Any) -> list[ToolResult]:
    async def main() -> list[ToolResult]:
        async with Executor([python_tool(config_of(**keys))], max_result_chars=1_000_000) as executor:
            return [await executor.call(ToolCall(name="python", arguments={"code": code})) for code in codes]

    return asyncio.run(main())


def run(code: str, **keys: Any) -> ToolResult:
    return in_turn(code, **keys)[0]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("total = 6 * 7\ntotal", "42"),
        ("1984 + 7", "1991"),
        ("'a'", "a"),
        ("print(1)\n2", "1\n2"),
        ("print(1)", "1"),
        ("[1].append(2)", "(no output)"),
        ("x = 1", "(no output)"),
        ("", "(no output)"),
        ("  a = 1\n  a + 1", "2"),
        ("def f(n):\n    return n and f(n - 1)\nf(3)", "0"),
        ("for i in range(2):\n    i", "(no output)"),
        ("import sys\nsys.exit(0)", "(no output)"),
        ("'\u00e9 \U0001f600'", "\u00e9 \U0001f600"),
    ],
)
def test_output_is_what_is_printed_and_the_value_of_the_last_expression(code: str, text: str) -> None:
    result = run(code)
    assert (result.status, result.text) == ("ok", text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print(1)\n1 / 0", "ZeroDivisionError: division by zero"),
        ("x", "NameError: name 'x' is not defined"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("input()", "EOFError: EOF when reading a line"),
        ("exit(3)", "exit code 3"),
        ("import os\nos.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_a_failure_is_an_error_with_the_last_line_of_stderr(code: str, text: str) -> None:
    result = run(code)
    assert (result.status, result.text) == ("error", text)


def test_memory_is_limited() -> None:
    result = run("b = bytearray(300 << 20)", memory_mib=256)
    assert (result.status, result.text) == ("error", "MemoryError")
    assert run("len(bytearray(100 << 20))", memory_mib=256).text == str(100 << 20)
    # What libraries have mapped does not count.
    assert run("len(bytearray(100 << 20))", memory_mib=128, preload=("numpy",)).text == str(100 << 20)


def test_cpu_time_files_and_open_files_are_limited() -> None:
    assert run("while True: pass", cpu_s=1).text == "killed: more than 1 s of CPU time"
    assert "File too large" in run("open('f', 'wb').write(b'x' * (3 << 20))", max_file_mib=2).text
    assert "Too many open files" in run("k = [open('/dev/null') for _ in range(99)]", max_open_files=32).text


def test_megabytes_of_output_are_read_but_not_kept() -> None:
    result = run("print('x' * 3_000_000)", max_output_kib=1)
    assert result.text == "x" * 1024 + f"\n[cut: {3_000_001 - 1024} bytes of output left out]"
    flood = "import sys\nsys.stderr.write('y' * 3_000_000 + chr(10))\n1 / 0"
    assert run(flood, max_output_kib=1).text == "ZeroDivisionError: division by zero"
    endless = run("while True: print('z' * 100_000)", max_written_mib=2)
    assert (endless.status, endless.text) == ("error", "killed: more than 2 MiB of output")


def test_a_call_past_its_deadline_is_a_timeout() -> None:
    assert run("import time\ntime.sleep(60)", timeout_s=0.2).status == "timeout"


def test_the_program_sees_nothing_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    names = [
        "HOME",
        "LANG",
        "MALLOC_ARENA_MAX",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PATH",
        "TMPDIR",
    ]
    assert run("import os\nsorted(os.environ)").text == str(names)
    assert run("import os\nos.environ['HOME'] == os.environ['TMPDIR'] == os.getcwd()").text == "True"
    assert str(Path(__file__).parent) not in run("import sys\nsys.path").text
    assert run("import sys\nsys.argv[1:]").text == "[]"
    assert run("import os\nos.getsid(0) == os.getpid() == os.getpgrp()").text == "True"


def test_each_call_has_an_empty_folder_that_does_not_stay() -> None:
    leave = "import os\nprint(os.getcwd(), os.listdir())\nopen('left', 'w')\nNone"
    first, second = in_turn(leave, leave)
    # An interpreter that lies below /tmp is seen there by its programs, as everything else that they may read.
    interpreter = [Path(sys.prefix).parts[2]] if Path(sys.prefix).is_relative_to("/tmp") else []
    assert first.text == second.text == f"/tmp {interpreter}"
    folder, files = run(leave, isolation="none").text.split()
    assert files == "[]"
    assert not Path(folder).exists()


CHILD = "import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
HOLD = "f = open({fifo!r}, 'w'); print('x', file=f, flush=True); import time; time.sleep(600)"


def test_cancellation_kills_the_program_and_its_children(tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    code = CHILD.format(child=HOLD.format(fifo=fifo)) + "import time\ntime.sleep(600)"

    async def main() -> str:
        config = config_of(isolation="none")
        server = ForkServer(config)
        call = asyncio.create_task(run_python(code, server=server, config=config))
        with await asyncio.to_thread(open, fifo) as pipe:
            assert await asyncio.to_thread(pipe.readline) == "x\n"
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            # The end of the file comes when the last process that holds the pipe is gone.
            text = await asyncio.to_thread(pipe.read)
        await server.aclose()
        return text

    assert asyncio.run(main()) == ""


def test_a_child_left_behind_neither_delays_nor_outlives_the_result(tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    # The program ends only after its child, which also holds stdout, has begun.
    wait = f"with open({fifo!r}) as f: f.readline()\n7"
    child = HOLD.format(fifo=fifo)
    assert run(CHILD.format(child=child) + wait, timeout_s=60.0, isolation="none").text == "7"
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    try:
        assert os.read(descriptor, 1) == b""
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("isolation", ["auto", "filters", "none"])
def test_calls_leave_no_descriptor_open_and_nothing_behind(isolation: str, caplog: pytest.LogCaptureFixture) -> None:
    def open_files(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    async def main() -> None:
        config = config_of(isolation=isolation)
        server = ForkServer(config)
        for _ in range(2):
            # The first calls start the server, and what it makes ahead.
            await asyncio.gather(*(run_python("1", server=server, config=config) for _ in range(8)))
        family = [os.getpid(), *descendants(server.pid)]
        before = [open_files(pid) for pid in family]
        for _ in range(13):
            await asyncio.gather(*(run_python(f"{i}", server=server, config=config) for i in range(8)))
            with pytest.raises(ToolError):
                await run_python("1 / 0", server=server, config=config)
        after = [open_files(pid) for pid in family]
        # The server may have an init more or less at hand, each with two descriptors; a leak would be a hundred.
        assert [abs(one - other) < 10 for one, other in zip(before, after, strict=True)] == [True] * len(family)
        await server.aclose()

    asyncio.run(main())
    # A pipe that does not end with its call would be reported.
    assert [record for record in caplog.records if "not isolated" not in record.message] == []


def descendants(pid: int) -> list[int]:
    """A server: the process that its caller waits for, and behind it the one that forks."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *children]


def test_a_missing_interpreter_is_an_error_of_one_line() -> None:
    config = config_of(interpreter="/nowhere/python")
    with pytest.raises(ToolError, match="cannot start /nowhere/python: "):
        asyncio.run(run_python("1", server=ForkServer(config), config=config))


def test_an_interpreter_that_ends_at_once_is_an_error_of_one_line() -> None:
    assert run("1", interpreter="/bin/false").text == "python: the server of its processes ended (exit code 1)"


def test_many_calls_at_once_have_their_own_output_each() -> None:
    async def main() -> list[str]:
        async with Executor([python_tool(config_of(max_concurrency=32))]) as executor:
            codes = [f"import sys\nprint({i})\nprint('e{i}', file=sys.stderr)\n{i} * 2" for i in range(32)]
            calls = [ToolCall(name="python", arguments={"code": code}) for code in codes]
            return [result.text for result in await asyncio.gather(*(executor.call(call) for call in calls))]

    assert asyncio.run(main()) == [f"{i}\n{i * 2}" for i in range(32)]


def test_a_call_sees_nothing_of_an_earlier_one() -> None:
    leave = """
import builtins, gc, math, os, random, signal, sys, threading
left = builtins.left = math.left = sys.left = 'left'
os.environ['LEFT'] = 'left'
os.umask(0)
os.nice(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.path.insert(0, 'left')
random.seed(0)
"""
    look = """
import builtins, math, os, random, signal, sys
print([hasattr(m, 'left') for m in (builtins, math, sys)], 'LEFT' in os.environ, 'left' in sys.path)
print('threading' in sys.modules, os.umask(0o22), os.nice(0), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
print(sorted(globals()))
"""
    before, _, after = in_turn(look, leave, look)
    assert before.text.startswith("[False, False, False] False False\nFalse ")
    assert after.text == before.text


def test_two_calls_draw_different_random_numbers() -> None:
    draw = """
import random, uuid, numpy, sympy.core.random
for value in random.random(), uuid.uuid4(), numpy.random.random(), sympy.core.random.random():
    print(value)
"""
    one, other = in_turn(draw, draw, preload=("numpy", "sympy"))
    assert (one.status, other.status) == ("ok", "ok")
    assert len({*one.text.splitlines(), *other.text.splitlines()}) == 8


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import threading\nt = threading.Timer(0.05, print, ['late'])\nt.start()\nprint('soon')", "soon\nlate"),
        ("import atexit\n_ = atexit.register(print, 'bye')\n1", "1\nbye"),
        ("class A:\n    def __del__(self):\n        print('gone', n)\nn = 7\na = A()\na.a = a\nNone", "gone 7"),
        ("import sys, io\nprint('kept')\nsys.stdout = io.StringIO()", "kept"),
        ("import sys\nsys.stdout.close()", "(no output)"),
        ("import os\nprint('both', flush=True)\nif not os.fork(): print('child')\nelse: _ = os.wait()", "both\nchild"),
    ],
)
def test_a_program_ends_as_an_interpreter_does(code: str, text: str) -> None:
    result = run(code)
    assert (result.status, result.text) == ("ok", text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import sys\nsys.exit('no luck')", "no luck"),
        ("import sys\nsys.exit((1 << 40) + 5)", "exit code 5"),
        ("import os\nos.kill(os.getpid(), 40)", "killed by signal 40"),
        ("import sys\nsys.excepthook = lambda kind, value, where: print('mine', file=sys.stderr)\n1 / 0", "mine"),
        ("raise BaseException('base')", "BaseException: base"),
    ],
)
def test_every_bad_end_has_a_line(code: str, text: str) -> None:
    result = run(code)
    assert (result.status, result.text) == ("error", text)


def test_a_deadline_kills_grandchildren_too(tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    # A grandchild of the program holds the pipe; the program and its child only wait.
    child = CHILD.format(child=HOLD.format(fifo=fifo)) + "import time\ntime.sleep(600)"
    code = CHILD.format(child=child) + "import time\ntime.sleep(600)"

    async def main() -> tuple[str, str, str]:
        async with Executor([python_tool(config_of(timeout_s=3.0, isolation="none"))]) as executor:
            call = asyncio.create_task(executor.call(ToolCall(name="python", arguments={"code": code})))
            with await asyncio.to_thread(open, fifo) as pipe:
                held = await asyncio.to_thread(pipe.readline)
                return held, (await call).status, await asyncio.to_thread(pipe.read)

    assert asyncio.run(main()) == ("x\n", "timeout", "")

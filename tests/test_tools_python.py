"""The python tool, in real subprocesses: echo, errors, limits, and that nothing outlives a call."""

import asyncio
import os
from pathlib import Path

import pytest

from engine.errors import ToolError
from engine.types import ToolCall, ToolResult
from tools.executor import Executor
from tools.python import PythonConfig, python_tool, run_python


def run(code: str, **limits: object) -> ToolResult:
    async def main() -> ToolResult:
        async with Executor([python_tool(PythonConfig(**limits))], max_result_chars=1_000_000) as executor:
            return await executor.call(ToolCall(name="python", arguments={"code": code}))

    return asyncio.run(main())


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
    result = run("b = bytearray(400 << 20)", memory_mib=256)
    assert (result.status, result.text) == ("error", "MemoryError")
    assert run("len(bytearray(100 << 20))", memory_mib=256).text == str(100 << 20)


def test_cpu_time_files_and_open_files_are_limited() -> None:
    assert run("while True: pass", cpu_s=1).text == "killed: more than 1 s of CPU time"
    assert "File too large" in run("open('f', 'wb').write(b'x' * (3 << 20))", max_file_mib=2).text
    assert "Too many open files" in run("k = [open('/dev/null') for _ in range(99)]", max_open_files=32).text


def test_megabytes_of_output_are_read_but_not_kept() -> None:
    result = run("print('x' * 3_000_000)", max_output_kib=1)
    assert result.text == "x" * 1024 + f"\n[cut: {3_000_001 - 1024} bytes of output left out]"
    flood = "import sys\nsys.stderr.write('y' * 3_000_000 + chr(10))\n1 / 0"
    assert run(flood, max_output_kib=1).text == "ZeroDivisionError: division by zero"


def test_a_call_past_its_deadline_is_a_timeout() -> None:
    assert run("import time\ntime.sleep(60)", timeout_s=0.2).status == "timeout"


def test_the_program_sees_nothing_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    assert run("import os\nprint(sorted(os.environ))").text.count("SECRET") == 0
    assert str(Path(__file__).parent) not in run("import sys\nsys.path").text
    assert run("import sys\nsys.argv[1:]").text == "[]"


def test_each_call_has_an_empty_folder_that_does_not_stay() -> None:
    folder, files = run("import os\nprint(os.getcwd())\nprint(os.listdir())\nopen('left', 'w')\nNone").text.splitlines()
    assert files == "[]"
    assert not Path(folder).exists()


CHILD = "import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
HOLD = "f = open({fifo!r}, 'w'); print('x', file=f, flush=True); import time; time.sleep(600)"


def test_cancellation_kills_the_program_and_its_children(tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    code = CHILD.format(child=HOLD.format(fifo=fifo)) + "import time\ntime.sleep(600)"

    async def main() -> str:
        call = asyncio.create_task(run_python(code, config=PythonConfig()))
        with await asyncio.to_thread(open, fifo) as pipe:
            assert await asyncio.to_thread(pipe.readline) == "x\n"
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            # The end of the file comes when the last process that holds the pipe is gone.
            return await asyncio.to_thread(pipe.read)

    assert asyncio.run(main()) == ""


def test_a_child_left_behind_neither_delays_nor_outlives_the_result(tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    # The program ends only after its child, which also holds stdout, has begun.
    wait = f"with open({fifo!r}) as f: f.readline()\n7"
    child = HOLD.format(fifo=fifo)
    assert run(CHILD.format(child=child) + wait, timeout_s=60.0).text == "7"
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    try:
        assert os.read(descriptor, 1) == b""
    finally:
        os.close(descriptor)


def test_calls_leave_no_descriptor_open_and_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> tuple[int, int]:
        await run_python("1", config=PythonConfig())
        before = len(os.listdir("/proc/self/fd"))
        await asyncio.gather(*(run_python("1", config=PythonConfig()) for _ in range(4)))
        return before, len(os.listdir("/proc/self/fd"))

    before, after = asyncio.run(main())
    assert after == before
    # A pipe that does not end with its process group would be reported.
    assert [record for record in caplog.records if record.name == "tools.python"] == []


def test_a_missing_interpreter_is_an_error_of_one_line() -> None:
    with pytest.raises(ToolError, match="cannot start /nowhere/python: "):
        asyncio.run(run_python("1", config=PythonConfig(interpreter="/nowhere/python")))

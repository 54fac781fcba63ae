"""The fork server, in real processes: who holds which descriptor, and what is left when one party dies.

Programs are met through files of the host, so most tests run without isolation, where the server is their parent.
"""

import asyncio
import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from engine.errors import ToolError
from tools.fork_server import ForkServer
from tools.python import PythonConfig, run_python

CONFIG = PythonConfig(isolation="none", preload=())
WAIT_S = 30.0
SERVER = "import os\nos.getppid()"
HOLD = "f = open({fifo!r}, 'w'); print('x', file=f, flush=True); import time; time.sleep(600)"
HOLD_TWICE = (
    "import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    "f = open({fifo!r}, 'w')\nprint(os.getppid(), file=f, flush=True)\nprint(os.getcwd(), file=f, flush=True)\n"
    "import time\ntime.sleep(600)"
)


@contextlib.contextmanager
def watched(pid: int) -> Iterator[select.poll]:
    """Something that is readable when the process has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        yield ended
    finally:
        os.close(descriptor)


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


def null_files(number: int) -> list[IO[bytes]]:
    return [os.fdopen(os.open(os.devnull, os.O_RDWR), "r+b", buffering=0) for _ in range(number)]


async def run(code: str, server: ForkServer) -> str:
    return await run_python(code, server=server, config=CONFIG)


def test_a_program_holds_no_descriptor_of_the_server_or_of_other_programs(fifo: str) -> None:
    look = "import os\n[(fd, os.readlink(f'/proc/self/fd/{fd}').split(':')[0]) for fd in range(99) if os.path.exists"
    look += "(f'/proc/self/fd/{fd}')]"

    async def main() -> str:
        server = ForkServer(CONFIG)
        other = asyncio.create_task(run(HOLD.format(fifo=fifo), server))
        with await asyncio.to_thread(open, fifo) as pipe:
            assert await asyncio.to_thread(pipe.readline) == "x\n"
            # The server watches the other one by now.
            found = await run(look, server)
            other.cancel()
            await asyncio.wait([other])
        await server.aclose()
        return found

    assert asyncio.run(main()) == "[(0, '/memfd'), (1, 'pipe'), (2, 'pipe')]"


def test_all_calls_come_from_one_server_that_ends_when_it_is_closed() -> None:
    async def main() -> tuple[set[str], str]:
        server = ForkServer(CONFIG)
        pids = {await run(SERVER, server) for _ in range(3)}
        with watched(int(min(pids))) as ended:
            await server.aclose()
            assert ended.poll(0)
        await server.aclose()
        after = await run(SERVER, server)
        await server.aclose()
        return pids, after

    pids, after = asyncio.run(main())
    assert len(pids) == 1
    assert after not in pids


def test_a_killed_server_fails_its_calls_and_is_replaced(fifo: str) -> None:
    async def main() -> tuple[str, str]:
        server = ForkServer(CONFIG)
        neighbour = asyncio.create_task(run(HOLD.format(fifo=fifo), server))
        with await asyncio.to_thread(open, fifo) as pipe:
            assert await asyncio.to_thread(pipe.readline) == "x\n"
            with pytest.raises(ToolError, match=r"the server of its processes ended \(SIGKILL\)"):
                await run("import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(600)", server)
            with pytest.raises(ToolError, match=r"the server of its processes ended \(SIGKILL\)"):
                await neighbour
            # The first process of a call goes with the server.
            left = await asyncio.to_thread(pipe.read)
        answer = await run("6 * 7", server)
        await server.aclose()
        return answer, left

    assert asyncio.run(main()) == ("42", "")


def test_a_server_that_was_killed_while_it_was_idle_costs_no_call() -> None:
    async def main() -> tuple[int, bool]:
        server = ForkServer(CONFIG)
        pid = await run(SERVER, server)
        with watched(int(pid)) as ended:
            os.kill(int(pid), signal.SIGKILL)
            assert ended.poll(WAIT_S * 1000)
        # The loop had no chance to notice; it is the request that cannot be sent.
        code = (await server.run(files=null_files(3))).exit_code
        is_new = await run(SERVER, server) != pid
        await server.aclose()
        return code, is_new

    assert asyncio.run(main()) == (0, True)


def test_closing_a_server_that_has_been_killed_is_no_error() -> None:
    async def main() -> None:
        server = ForkServer(CONFIG)
        pid = int(await run(SERVER, server))
        with watched(pid) as ended:
            os.kill(pid, signal.SIGKILL)
            assert ended.poll(WAIT_S * 1000)
        await server.aclose()

    asyncio.run(main())


@pytest.mark.real  # it waits for PATIENCE_S
def test_a_server_that_does_not_answer_is_killed_and_replaced() -> None:
    async def main() -> str:
        server = ForkServer(CONFIG)
        pid = int(await run(SERVER, server))
        stop = "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(600)"
        with watched(pid) as ended:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await run(stop, server)
            assert ended.poll(0)
        answer = await run("6 * 7", server)
        await server.aclose()
        return answer

    assert asyncio.run(asyncio.wait_for(main(), WAIT_S)) == "42"


def test_more_calls_than_the_socket_holds_wait_for_room() -> None:
    async def one(server: ForkServer) -> int:
        return (await server.run(files=null_files(3))).exit_code

    async def main() -> list[int]:
        server = ForkServer(CONFIG)
        pid = int(await run(SERVER, server))
        # Stopped, it reads nothing: some 280 messages fit.
        os.kill(pid, signal.SIGSTOP)
        calls = [asyncio.create_task(one(server)) for _ in range(320)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGCONT)
        codes = await asyncio.gather(*calls)
        await server.aclose()
        return codes

    assert asyncio.run(main()) == [0] * 320


def test_nothing_outlives_a_process_that_was_killed(fifo: str) -> None:
    code = HOLD_TWICE.format(fifo=fifo, child=HOLD.format(fifo=fifo))
    parent = f"""
import asyncio
from tools.fork_server import ForkServer
from tools.python import PythonConfig, run_python
config = PythonConfig(isolation="none", preload=())
asyncio.run(run_python({code!r}, server=ForkServer(config), config=config))
"""
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        try:
            with open(fifo) as pipe:
                lines = [pipe.readline().strip() for _ in range(3)]
                lines.remove("x")
                pid, folder = lines
                with watched(int(pid)) as ended:
                    process.kill()
                    # The end of the file: the program and its child are gone.
                    assert pipe.read() == ""
                    assert ended.poll(WAIT_S * 1000)
                assert not Path(folder).exists()
        finally:
            process.kill()


def test_closing_kills_what_runs(fifo: str) -> None:
    code = HOLD_TWICE.format(fifo=fifo, child=HOLD.format(fifo=fifo))

    async def main() -> str:
        server = ForkServer(CONFIG)
        call = asyncio.create_task(run(code, server))
        with await asyncio.to_thread(open, fifo) as pipe:
            lines = [await asyncio.to_thread(pipe.readline) for _ in range(3)]
            assert "x\n" in lines
            await server.aclose()
            with pytest.raises(ToolError, match=r"the server of its processes ended \(exit code 0\)"):
                await call
            return await asyncio.to_thread(pipe.read)

    assert asyncio.run(main()) == ""


def test_each_event_loop_has_a_server_and_those_of_closed_loops_end() -> None:
    server = ForkServer(CONFIG)
    first = int(asyncio.run(run(SERVER, server)))
    with watched(first) as ended:
        second = int(asyncio.run(run(SERVER, server)))
        assert ended.poll(0)
    assert second != first
    with watched(second) as ended:
        del server
        assert ended.poll(0)


def test_two_threads_use_one_tool_at_a_time(fifo: str) -> None:
    server = ForkServer(CONFIG)
    texts: list[str] = []
    reading = f"with open({fifo!r}) as f: f.readline()\n'read'"
    thread = threading.Thread(target=lambda: texts.append(asyncio.run(run(reading, server))))
    thread.start()
    # Opens when the program in the other thread's loop has opened it, and lets it end.
    with open(fifo, "w") as pipe:
        texts.append(asyncio.run(run("'wrote'", server)))
        pipe.write("x\n")
    thread.join(WAIT_S)
    assert texts == ["wrote", "read"]


def test_a_file_that_cannot_be_handed_over_is_an_error_and_the_server_stays() -> None:
    async def main() -> bool:
        server = ForkServer(CONFIG)
        before = await run(SERVER, server)
        # More than one message may carry.
        files = null_files(300)
        with pytest.raises(ToolError, match="cannot hand over the call"):
            await server.run(files=files)
        after = await run(SERVER, server)
        await server.aclose()
        return before == after and all(file.closed for file in files)

    assert asyncio.run(main())


@pytest.mark.parametrize(("num_open", "reason"), [(4, "too many open files"), (6, r"\[Errno 24\] Too many open files")])
def test_a_server_without_descriptors_to_spare_fails_the_call_and_is_replaced(num_open: int, reason: str) -> None:
    async def main() -> bool:
        server = ForkServer(CONFIG)
        before = await run(SERVER, server)
        # Beside its three, it receives three, and opens one that tells the end of the process.
        resource.prlimit(int(before), resource.RLIMIT_NOFILE, (num_open, 64))
        with pytest.raises(ToolError, match=f"cannot start a process: {reason}"):
            await run("1", server)
        after = await run(SERVER, server)
        await server.aclose()
        return before != after

    assert asyncio.run(main())


def test_a_server_is_replaced_behind_so_many_calls_and_ends_with_its_last(fifo: str) -> None:
    async def main() -> list[str]:
        config = PythonConfig(isolation="none", preload=(), recycle_calls=3)
        server = ForkServer(config)
        long = asyncio.create_task(run_python(HOLD.format(fifo=fifo), server=server, config=config))
        with await asyncio.to_thread(open, fifo) as pipe:
            assert await asyncio.to_thread(pipe.readline) == "x\n"
            pids = [await run_python(SERVER, server=server, config=config) for _ in range(5)]
            with watched(int(pids[0])) as ended:
                assert not ended.poll(0)
                long.cancel()
                await asyncio.wait([long])
                assert ended.poll(WAIT_S * 1000)
        await server.aclose()
        return pids

    pids = asyncio.run(main())
    assert pids[0] == pids[1] != pids[2] == pids[3] == pids[4]


def test_calls_that_are_cancelled_before_their_process_begins_cost_no_patience() -> None:
    async def main() -> bool:
        server = ForkServer(CONFIG)
        before = await run(SERVER, server)
        for _ in range(20):
            os.kill(int(before), signal.SIGSTOP)
            program = os.fdopen(os.memfd_create("program"), "w+b", buffering=0)
            program.write(b"import time\ntime.sleep(600)")
            program.seek(0)
            call = asyncio.create_task(server.run(files=[program, *null_files(2)]))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.sleep(0)
            # Both requests are there at once: the kill may find a process that has no group yet.
            os.kill(int(before), signal.SIGCONT)
            await asyncio.wait([call])
            assert call.cancelled()
        after = await run(SERVER, server)
        await server.aclose()
        return before == after

    assert asyncio.run(main())

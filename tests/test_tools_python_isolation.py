"""How far programs are kept apart, and what is said where that is not far: on a machine that refuses namespaces.

Such a machine is made by an interpreter that gives up the right to them before it starts.
"""

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.errors import ConfigError, ToolError
from engine.types import ToolCall, ToolResult
from tools.config import ToolsConfig, build_executor
from tools.executor import Executor
from tools.python import python_tool
from tools.python_config import PythonConfig
from tools.python_isolation import Isolation, examine_isolation, sandbox_command

ROOT = Path(__file__).resolve().parent.parent
CONFINED = """#!{python}
import os, sys
sys.path.insert(0, {root!r})
from tools.sandbox import libc, seccomp
libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
seccomp.filter_calls(has_namespaces=True)
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


@pytest.fixture
def confined(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(CONFINED.format(python=sys.executable, root=str(ROOT)))
    path.chmod(0o755)
    return str(path)


def test_why_there_are_no_namespaces_is_said_in_plain_words(confined: str) -> None:
    found = examine_isolation(PythonConfig(interpreter=confined))
    assert not found.is_full
    assert str(found).startswith(
        "programs are not isolated ([Errno 1] Operation not permitted: 'unshare'): they have no"
    )


def test_isolation_that_is_required_and_cannot_be_had_is_refused_at_the_start(confined: str) -> None:
    config = ToolsConfig(python=PythonConfig(interpreter=confined, require_isolation=True))
    with pytest.raises(ConfigError, match=r"not isolated.* - at \$\.tools\.python\.require_isolation$"):
        build_executor(config)
    with pytest.raises(ConfigError, match=r"not isolated.* - at \$\.tools\.python\.require_isolation$"):
        python_tool(PythonConfig(isolation="none", require_isolation=True))
    with pytest.raises(ConfigError, match=r"cannot try /nowhere: .* - at \$\.tools\.python\.interpreter$"):
        python_tool(PythonConfig(interpreter="/nowhere", require_isolation=True))


def test_a_folder_to_read_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"no such file or folder: '/nowhere' - at \$\.tools\.python\.readable$"):
        python_tool(PythonConfig(readable=("/nowhere",)))


def test_without_namespaces_filters_hold_and_it_is_said_once(confined: str, caplog: pytest.LogCaptureFixture) -> None:
    # Of a child, since a leader cannot leave its group anyway.
    leave = "import os\nif os.fork() == 0:\n    os.setsid()\n    os._exit(0)\nos.waitstatus_to_exitcode(os.wait()[1])"
    codes = ("import socket\nsocket.socket()", leave, "import os\nos.getcwd() == os.environ['HOME']")

    async def main() -> list[ToolResult]:
        config = PythonConfig(interpreter=confined, preload=("no_such_module",), recycle_calls=1)
        async with Executor([python_tool(config)]) as executor:
            return [await executor.call(ToolCall(name="python", arguments={"code": code})) for code in codes]

    with caplog.at_level(logging.WARNING):
        texts = [result.text for result in asyncio.run(main())]
    assert texts == [
        "OSError: [Errno 97] Address family not supported by protocol",
        "1",
        "True",
    ]
    told = [record.message for record in caplog.records]
    assert told[0] == "python: cannot preload no_such_module"
    assert told[1].startswith("python: programs are not isolated ([Errno 1] Operation not permitted: 'unshare')")
    assert len(told) == 2


def test_each_degree_has_a_sentence() -> None:
    assert str(Isolation(isolation="namespaces")) == "programs run isolated, each in namespaces of its own"
    assert "may do whatever" in str(Isolation(isolation="none"))
    assert "no file but libraries" in str(Isolation(isolation="filters", reason="x", landlock=1))
    assert "every file that the user" in str(Isolation(isolation="filters", reason="x"))


def test_what_a_configuration_shows_can_be_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    os.chmod(tmp_path, 0o755)
    path = str(tmp_path / "table.csv")
    codes = (f"open({path!r}).read()", f"open({path!r}, 'w')")

    async def main() -> list[ToolResult]:
        async with Executor([python_tool(PythonConfig(preload=(), readable=(str(tmp_path),)))]) as executor:
            return [await executor.call(ToolCall(name="python", arguments={"code": code})) for code in codes]

    read, written = asyncio.run(main())
    assert read.text == "a,b"
    assert written.status == "error"
    assert (tmp_path / "table.csv").read_text() == "a,b"


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A copy of the sandbox that any user can read."""
    folder = Path(tempfile.mkdtemp(prefix="arpo-sandbox-"))
    folder.chmod(0o755)
    shutil.copytree(ROOT / "tools" / "sandbox", folder / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    yield folder / "sandbox"
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_has_namespaces_where_root_has_them(everyones: Path) -> None:
    python = "/usr/bin/python3"
    if not os.path.exists(python):
        pytest.skip("this machine has no interpreter that everyone may run")
    command = [python, *sandbox_command(PythonConfig(), "probe", "[]")[1:]]
    command[4] = str(everyones)
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=60, user=1234, group=1234, extra_groups=[], cwd="/"
    )
    assert process.returncode == 0, process.stderr
    found = msgspec.json.decode(process.stdout, type=Isolation)
    assert found.isolation == examine_isolation(PythonConfig()).isolation, found.reason


def test_an_interpreter_that_cannot_run_is_an_error() -> None:
    with pytest.raises(ToolError, match="cannot try /bin/false: exit code 1"):
        examine_isolation(PythonConfig(interpreter="/bin/false"))

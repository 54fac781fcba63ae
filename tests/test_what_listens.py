"""What a run on one machine listens on: nothing but loopback; and nothing that comes over a wire is unpickled."""

import ast
import signal
from pathlib import Path

import psutil
import pytest

from tests.test_resume import Place

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = ("127.", "::1", "::ffff:127.")
READERS = {"pickle": {"load", "loads", "Unpickler"}, "torch": {"load"}, "marshal": {"load", "loads"}}


def unpicklers(source: str) -> list[str]:
    """Calls that make code out of bytes."""
    return [
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.attr in READERS.get(node.func.value.id, ())
    ]


def test_nothing_is_unpickled() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): calls
        for package in ("engine", "actors", "learner", "tools")
        for path in (ROOT / package).rglob("*.py")
        if (calls := unpicklers(path.read_text()))
    }
    assert found == {}
    assert unpicklers("import pickle\npickle.loads(frame)") == ["pickle.loads"]


@pytest.mark.real
@pytest.mark.timeout(180)
def test_a_run_listens_on_loopback_alone(tmp_path: Path) -> None:
    place = Place(tmp_path)
    process = place.start("listens", "learner.tensor_parallel=2", "model.num_heads=2", "model.num_kv_heads=2", "eval=")
    assert process.stderr is not None
    try:
        assert any(" 1/12" in line for line in process.stderr), "training has begun"
        addresses = [
            connection.laddr.ip
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for connection in one.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert addresses, "the ranks of the learner meet somewhere"
        assert [address for address in addresses if not address.startswith(LOOPBACK)] == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

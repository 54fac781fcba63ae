"""What is promised: the sorted `__all__` of each package, and a command line that answers before it loads anything."""

import importlib
import json
import subprocess
import sys

import pytest

PACKAGES = ("engine", "engine.inference", "tools", "learner", "actors")
HEAVY = {"torch", "megatron", "ray", "sglang", "transformers", "pyarrow", "bm25s", "tokenizers", "jinja2", "rich"}


@pytest.mark.parametrize("package", PACKAGES)
def test_exports_are_sorted_and_every_name_imports(package: str) -> None:
    module = importlib.import_module(package)
    names = list(module.__all__)
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(module, name)] == []


def test_help_answers_without_loading_anything_heavy() -> None:
    code = """
import json, sys
from actors.cli import main
sys.argv = ["arpo", "--help"]
try:
    main()
except SystemExit as end:
    code = end.code
else:
    code = 0
json.dump([code, [name.split(".")[0] for name in sys.modules]], sys.stderr)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    exit_code, modules = json.loads(process.stderr)
    assert not exit_code
    assert "usage: arpo" in process.stdout
    assert set(modules) & HEAVY == set()

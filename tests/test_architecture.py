"""The shape of the house: arrows, cycles, doors, names, sizes.

Each rule is a function of a source tree that returns its violations as `file:line: what`; it is held against this
checkout, and against a planted offence that it must find.
"""

import ast
import fnmatch
import graphlib
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "tools", "learner", "actors")
ARROWS = {
    "engine": {"engine"},
    "tools": {"engine", "tools"},
    "learner": {"engine", "learner"},
    "actors": {"engine", "tools", "learner", "actors"},
    "configs": set[str](),
}
EVERYWHERE = {"msgspec", "numpy"}
DOORS: dict[str, tuple[str, ...]] = {
    "aiohttp": (
        "engine/inference/*",
        "tools/http.py",
        "tools/chat_endpoint.py",
        "tools/python_remote.py",
        "actors/gateway/answers.py",
        "actors/gateway/server.py",
        "actors/bench/serve_clients.py",
        "actors/sink_prometheus.py",
        "actors/view/server.py",
    ),
    "asyncio_throttle": ("tools/hosts.py",),
    "bm25s": ("tools/search.py",),
    "flash_attn": ("learner/network/attention*.py",),
    "jsonschema": ("tools/json_schema.py",),
    "httpx2": ("tools/mcp_client.py",),
    "jinja2": ("engine/chat_template.py", "actors/report/page.py"),
    "math_verify": ("tools/math_equal.py",),
    "matplotlib": ("actors/report/plots.py",),
    "mcp": ("tools/mcp_client.py",),
    "megatron": ("learner/mcore.py",),
    "psutil": ("actors/*",),
    "pyarrow": ("engine/dataset_files.py", "tools/corpus_files.py", "tools/toolworld_files.py"),
    "ray": ("actors/ray_*.py",),
    "rich": ("actors/*",),
    # The benchmarks time the reference implementations: a plain `save_file`, and transformers, which speaks torch.
    "safetensors": ("engine/inference/*", "learner/*", "actors/bench/publishing.py"),
    "sglang": (),
    "tensorboard": ("actors/sink_tensorboard.py",),
    "tokenizers": ("engine/tokenizer.py", "engine/tokenizer_tiny.py"),
    "torch": (
        "engine/inference/*",
        "learner/*",
        "actors/bench/decode.py",
        "actors/bench/learner_*.py",
        "actors/bench/trl_arm.py",
        "actors/sglang_cpu_shims/*",
    ),
    "trafilatura": ("tools/readable.py",),
    "transformers": ("actors/bench/*",),
    # In no environment of ours: a bench installs it on request, for a process of its own.
    "datasets": ("actors/bench/trl_arm.py",),
    "trl": ("actors/bench/trl_arm.py",),
    "wandb": ("actors/sink_wandb.py",),
}
"""Dependency to the only files that may import it; `*` matches any depth."""
ONE_FILE = ("asyncio_throttle", "bm25s", "jsonschema", "matplotlib", "mcp", "rich", "trafilatura")
"""Dependencies that one file may import, whatever the pattern allows."""
PRINTERS = ("actors/cli.py", "*/__main__.py")
"""Programs: what they print is their answer."""
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|farm|Users)/")

Import = tuple[int, str, tuple[str, ...]]
"""Line, module, and the names taken from it."""


def sources(root: Path) -> dict[str, ast.Module]:
    """Every Python file of the packages, by its path relative to `root`."""
    paths = [path for name in (*PACKAGES, "configs") for path in sorted((root / name).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): ast.parse(path.read_text()) for path in paths}


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(file: str, nodes: Iterator[ast.AST]) -> Iterator[Import]:
    """Import statements, relative ones resolved, and `import_module("literal")`."""
    for node in nodes:
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name, ()) for alias in node.names)
            case ast.ImportFrom():
                package = module_name(file).split(".")
                if node.level:
                    package = package[: len(package) - node.level + file.endswith("__init__.py")]
                base = ".".join([*(package if node.level else []), *filter(None, [node.module])])
                yield node.lineno, base, tuple(alias.name for alias in node.names)
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                if node.args and isinstance(node.args[0], ast.Constant):
                    yield node.lineno, str(node.args[0].value), ()
            case _:
                pass


def at_top_level(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: neither function bodies nor `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_top_level(child)


def against_arrows(root: Path) -> list[str]:
    return [
        f"{file}:{line}: imports {module}"
        for file, tree in sources(root).items()
        for line, module, _ in imports(file, ast.walk(tree))
        if (target := module.split(".")[0]) in ARROWS and target not in ARROWS[file.split("/")[0]]
    ]


def import_cycles(root: Path) -> list[str]:
    trees = sources(root)
    modules = {module_name(file) for file in trees}
    graph: dict[str, set[str]] = {}
    for file, tree in trees.items():
        targets: set[str] = set()
        for _, module, names in imports(file, at_top_level(tree)):
            inner = {f"{module}.{name}" for name in names} & modules
            # `from package import module` needs the package itself only for names that are no modules.
            targets |= inner if inner and len(inner) == len(set(names)) else inner | ({module} & modules)
        graph[module_name(file)] = targets - {module_name(file)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def without_a_door(root: Path) -> list[str]:
    """Imports of a third-party package outside its door, or of one that has no entry in the table."""
    found: list[str] = []
    importers: dict[str, set[str]] = {}
    for file, tree in sources(root).items():
        for line, module, _ in imports(file, ast.walk(tree)):
            name = module.split(".")[0]
            if name in sys.stdlib_module_names | EVERYWHERE | set(ARROWS):
                continue
            importers.setdefault(name, set()).add(file)
            if not any(fnmatch.fnmatchcase(file, door) for door in DOORS.get(name, ())):
                found.append(f"{file}:{line}: {name} is imported outside its door")
    several = {name: files for name in ONE_FILE if len(files := importers.get(name, set())) > 1}
    return found + [f"{name} is imported by several files: {sorted(files)}" for name, files in several.items()]


def too_long(root: Path) -> list[str]:
    found: list[str] = []
    for file, tree in sources(root).items():
        num_lines = len((root / file).read_text().splitlines())
        if num_lines > MAX_FILE_LINES:
            found.append(f"{file}: {num_lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{file}:{node.lineno}: {node.name} has {length} lines")
    return found


def nameless_modules(root: Path) -> list[str]:
    return [file for file in sources(root) if NAMELESS & set(module_name(file).split("."))]


def code_in_configs(root: Path) -> list[str]:
    """`configs/` is a package only so that it can be shipped: its one Python file holds a docstring."""
    return [
        f"{file}: code"
        for file, tree in sources(root).items()
        if file.startswith("configs/")
        and (file != "configs/__init__.py" or len(tree.body) != 1 or ast.get_docstring(tree) is None)
    ]


def prints(root: Path) -> list[str]:
    return [
        f"{file}:{node.lineno}: print"
        for file, tree in sources(root).items()
        if not any(fnmatch.fnmatchcase(file, printer) for printer in PRINTERS)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def machine_paths(root: Path) -> list[str]:
    """Places of one machine, in any text file that is neither generated nor hidden."""
    found: list[str] = []
    for folder, children, names in os.walk(root):
        generated = {"runs", "build", "dist", "__pycache__", "node_modules"}
        children[:] = [n for n in children if n == ".ci" or not (n.startswith(".") or n in generated)]
        # A linked worktree's `.git` is a file that says where the repository is.
        for path in (Path(folder, name) for name in names if name != ".git"):
            if path.stat().st_size < 2_000_000 and b"\0" not in (content := path.read_bytes()):
                lines = enumerate(content.decode(errors="replace").splitlines(), 1)
                found += [f"{path.relative_to(root)}:{number}" for number, line in lines if MACHINE_PATH.search(line)]
    return found


def not_in_the_wheel(root: Path) -> list[str]:
    """Packages that pyproject.toml does not list, or lists in vain."""
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {module_name(file) for file in sources(root) if file.endswith("/__init__.py")}
    present = {"actors.configs" if name == "configs" else name for name in folders}
    return [f"pyproject.toml: tool.setuptools.packages: {name}" for name in sorted(listed ^ present)]


PLANTED: dict[Callable[[Path], list[str]], dict[str, str]] = {
    against_arrows: {"tools/a.py": "def f():\n    import learner.algorithms.loss"},
    import_cycles: {"engine/a.py": "from engine import b", "engine/b.py": "try:\n    from . import a\nfinally: ..."},
    without_a_door: {"actors/a.py": "from importlib import import_module\nray = import_module('ray.util')"},
    too_long: {"actors/a.py": "def f():\n" + "    x = 1\n" * 60},
    nameless_modules: {"engine/utils/a.py": ""},
    code_in_configs: {"configs/__init__.py": '"""Data."""\nx = 1'},
    prints: {"learner/a.py": "print(1)"},
    machine_paths: {"README.md": "see /" + "work/notes"},
    not_in_the_wheel: {
        "pyproject.toml": "[tool.setuptools]\npackages = ['engine']",
        "engine/__init__.py": "",
        "engine/inference/__init__.py": "",
    },
}


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_the_checkout_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_the_rule_finds_a_planted_offence(rule: Callable[[Path], list[str]], tmp_path: Path) -> None:
    for file, text in PLANTED[rule].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert len(rule(tmp_path)) == 1


def test_every_dependency_has_a_door() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    distributions = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in declared}
    assert {name.removesuffix("_core") for name in distributions} <= set(DOORS) | EVERYWHERE


def test_top_level_names_are_ours_whatever_else_is_installed() -> None:
    files = {name: importlib.import_module(name).__file__ for name in PACKAGES}
    assert files == {name: str(ROOT / name / "__init__.py") for name in PACKAGES}
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_importing_engine_or_a_package_loads_nothing_heavy() -> None:
    light = [f"{package}/__init__.py" for package in PACKAGES] + ["engine/inference/__init__.py"]
    light += [file for file in sources(ROOT) if re.fullmatch(r"engine/(?!inference/).*\.py", file)]
    assert loaded_by(*map(module_name, light)) & set(DOORS) == set()


def test_what_a_process_loads_is_seen() -> None:
    assert loaded_by("engine.clock", "asyncio_throttle") & set(DOORS) == {"asyncio_throttle"}


def loaded_by(*modules: str) -> set[str]:
    """Top-level names in `sys.modules` of a new process that imports `modules`."""
    code = f"import importlib, json, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stdout))

"""The wheel: the four packages with `configs/` inside `actors`, no tests, and it runs outside the checkout."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "tools", "learner", "actors")


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; no PYTHONPATH leads back to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that neither an old `build/` goes in nor a new one is left behind."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "configs", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = tmp_path_factory.mktemp("wheels")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "-q",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
    ]
    run(*pip, "--wheel-dir", wheels, source, cwd=source)
    (built,) = wheels.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the wheel, and sees this environment's dependencies behind it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--no-deps", wheel, cwd=folder)
    # A plain path line runs no .pth file of the other environment, hence not its editable install of the checkout.
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return folder / "bin" / "python"


@pytest.mark.real
def test_the_wheel_holds_the_four_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PACKAGES)
    files = [path for package in (*PACKAGES, "configs") for path in (ROOT / package).rglob("*") if path.is_file()]
    shipped = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {name.removeprefix("actors/") if "/configs/" in name else name for name in names} >= shipped
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.real
def test_the_installed_wheel_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    imports = f"import {', '.join(PACKAGES)}; import sys; sys.stdout.write(engine.__file__)"
    assert run(installed, "-c", imports, cwd=tmp_path).startswith(str(installed.parent.parent))
    assert "usage: arpo" in run(installed.parent / "arpo", "--help", cwd=tmp_path)


@pytest.mark.real
def test_the_shipped_configurations_are_found_where_they_are_installed(installed: Path, tmp_path: Path) -> None:
    code = "import importlib.resources, sys\n"
    code += "files = importlib.resources.files('actors.configs').iterdir()\n"
    code += "sys.stdout.write(' '.join(sorted(f.name for f in files if f.name.endswith('.toml'))))"
    expected = " ".join(sorted(path.name for path in (ROOT / "configs").glob("*.toml")))
    assert run(installed, "-c", code, cwd=tmp_path) == expected

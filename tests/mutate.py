"""Mutants: each patch in `tests/mutations/` breaks one claim, and the tests it names must turn red.

    python tests/mutate.py [--jobs N] [--check] [NAME ...]

A patch begins with header lines, and goes on with a diff of a line or few against the root of the checkout:

    Claim: what the code promises, in a sentence
    Test: tests/test_coins.py::test_coins_are_uniform
    Test: a second node id, when more than one test must notice

Each mutant runs in a copy of the tree. A test without its parameters stands for any of its cases. First, the
unchanged tree must pass all the named tests. Exit code 1 when a mutant survives, a patch no longer applies, or a named
test fails without it; `--check` only applies the patches.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "tests" / "mutations"
BASELINE_S = 900
MUTANT_S = 300
RED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One patch and what it claims."""

    path: Path
    claim: str
    tests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a mutant: `killed` is the good end."""

    name: str
    outcome: str
    detail: str
    duration_s: float


def read(path: Path) -> Mutant:
    """Parse the header; raises `ValueError`, naming the file, when the claim or the tests are missing."""
    header = path.read_text().partition("\ndiff --git ")[0].partition("\n--- ")[0].splitlines()
    claims = [line.removeprefix("Claim:").strip() for line in header if line.startswith("Claim:")]
    tests = tuple(line.removeprefix("Test:").strip() for line in header if line.startswith("Test:"))
    if len(claims) != 1 or not tests:
        raise ValueError(f"{path.name}: expected one `Claim:` line and at least one `Test:` line")
    return Mutant(path=path, claim=claims[0], tests=tests)


def copy_tree(target: Path) -> None:
    """The files git tracks or would track, as they are now."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def apply(mutant: Mutant, tree: Path) -> str:
    """Change the tree; returns why the patch does not apply, or nothing."""
    # Without the ceiling, git would look for a repository above the copy, and skip files outside of it.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    process = subprocess.run(
        ["git", "apply", "-p1", str(mutant.path)], cwd=tree, env=environment, capture_output=True, text=True
    )
    return process.stderr.strip() if process.returncode else ""


def run_tests(tests: tuple[str, ...], tree: Path, *, timeout_s: float) -> tuple[int, str]:
    """Exit code of pytest (124 out of time) and what it printed."""
    # The copy comes first on the path, also for the processes that tests start: the checkout is installed, too.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    # With the signal method a test that hangs fails by itself, and the others are still heard.
    options = ["-p", "no:cacheprovider", "--tb=line", "-rfE", "-o", "timeout_method=signal", "--color=no"]
    command = ["timeout", "--kill-after=20", str(timeout_s), sys.executable, "-m", "pytest", *options, *tests]
    process = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return (124 if process.returncode == 137 else process.returncode), process.stdout + process.stderr


def judge(mutant: Mutant) -> Verdict:
    """Apply, run, and see whether every named test is red."""
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy_tree(Path(folder))
        outcome, detail = "stale", apply(mutant, Path(folder))
        if not detail:
            code, output = run_tests(mutant.tests, Path(folder), timeout_s=MUTANT_S)
            red = {node for match in RED.findall(output) for node in (match, match.partition("[")[0])}
            green = [test for test in mutant.tests if test not in red]
            if code == 124:
                outcome, detail = "killed", f"out of time after {MUTANT_S} s"
            elif code not in (0, 1):
                outcome, detail = "broken", f"pytest exited {code}: {output.strip()[-300:]}"
            else:
                outcome, detail = ("survived", "green: " + ", ".join(green)) if green else ("killed", "")
    return Verdict(name=mutant.path.stem, outcome=outcome, detail=detail, duration_s=time.monotonic() - start_s)


def check(mutant: Mutant) -> Verdict:
    """Apply, and no more."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy_tree(Path(folder))
        detail = apply(mutant, Path(folder))
    return Verdict(name=mutant.path.stem, outcome="stale" if detail else "applies", detail=detail, duration_s=0.0)


def baseline(mutants: list[Mutant]) -> str:
    """The named tests on the unchanged tree; returns what pytest printed where one fails, or nothing."""
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    with tempfile.TemporaryDirectory(prefix="baseline-") as folder:
        copy_tree(Path(folder))
        code, output = run_tests(tests, Path(folder), timeout_s=BASELINE_S)
    return output if code else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Show that each mutant in tests/mutations/ turns its tests red.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="file names without .patch; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--check", action="store_true", help="only see whether the patches still apply")
    arguments = parser.parse_args()
    known = {path.stem: path for path in sorted(PATCHES.glob("*.patch"))}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no such mutant: {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
    try:
        mutants = [read(known[name]) for name in arguments.names or known]
    except ValueError as error:
        parser.error(str(error))
    if not arguments.check and (output := baseline(mutants)):
        print(output, "\nthe unchanged tree fails tests that mutants name", file=sys.stderr)
        return 1
    width = max((len(mutant.path.stem) for mutant in mutants), default=0)
    num_good = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, verdict in zip(mutants, pool.map(check if arguments.check else judge, mutants), strict=True):
            num_good += verdict.outcome in ("killed", "applies")
            print(f"{verdict.outcome:9} {verdict.name:{width}} {verdict.duration_s:6.1f} s  {mutant.claim}", flush=True)
            if verdict.detail:
                print(f"{'':9} {verdict.detail}", flush=True)
    print(f"{num_good} of {len(mutants)} mutants {'apply' if arguments.check else 'killed'}")
    return 0 if num_good == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())

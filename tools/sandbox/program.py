"""The process of a program: how it gets where it runs, and runs as an interpreter runs one."""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from . import limits, warm
from .isolation import Place

_TOLD = 3
_MAX_DESCRIPTORS = 1 << 20


class Bounds(NamedTuple):
    """What one program may take."""

    limits: dict[str, int]
    """Names of `resource` to values."""
    memory_bytes: int


def become(place: Place, bounds: Bounds, *, files: Sequence[int], told: int) -> NoReturn:
    """In a fork of the server: run the program in `files[0]`, with stdout and stderr the other two.

    Whatever else the server had open is closed. Where something fails before the program, it is written into `told`.
    """
    try:
        folder = place.enter()
        for target, file in enumerate((*files, told)):
            os.dup2(file, target)
        told = _TOLD
        os.closerange(_TOLD + 1, _MAX_DESCRIPTORS)
        os.setsid()
        os.chdir(folder)
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
        source = sys.stdin.read()
        if "random" in source:
            # A program that does not name it cannot tell; each page that is written costs a copy.
            warm.reseed()
        mapped = limits.prepare()
        # Processes are counted in the user namespace that is entered here.
        place.confine()
        limits.bind(bounds.limits, address_space=mapped + bounds.memory_bytes)
    except Exception as error:
        os.write(told, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.close(told)
    # The interpreter's own way out takes some 5 ms to free what ends with the process anyway.
    os._exit(run_to_the_end(source))


def run_to_the_end(source: str) -> int:
    """Run a program and all that an interpreter does behind it: threads, exit functions, finalizers, full buffers.

    Returns the exit code; output is flushed.
    """
    status = 0
    try:
        run(source)
    except SystemExit as end:
        if isinstance(end.code, int):
            status = end.code & 0xFF
        elif end.code is not None:
            sys.stderr.write(f"{end.code}\n")
            status = 1
    except BaseException:  # whatever a program raises is told as the interpreter tells it
        sys.excepthook(*sys.exc_info())
        status = 1
    if (threading := sys.modules.get("threading")) is not None:
        threading._shutdown()  # joins those that are no daemons; there is no public name
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
    return status


def run(source: str) -> None:
    """Run it in a namespace of its own, and echo the value of a last expression unless it is None.

    Complete by itself: its text is also sent where no file of this project is.
    """
    import ast
    import sys
    import textwrap

    tree = ast.parse(textwrap.dedent(source).strip(), "<python>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    names = {"__name__": "__main__"}
    exec(compile(tree, "<python>", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "<python>", "eval"), names)
        if value is not None:
            sys.stdout.write(f"{value}\n")

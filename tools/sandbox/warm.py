"""What is imported and used once before any call, so that it costs a call nothing."""

import gc
import importlib
import sys
from collections.abc import Iterable
from contextlib import suppress

from . import libc

_HUGE = 2 << 20
ALWAYS = ("collections", "datetime", "decimal", "fractions", "functools", "itertools", "math", "random", "re")

# Half of what a first use of such a library takes is imports that it puts off, the other half caches that it fills.
WARM_UPS = {
    "numpy": """
import numpy as np
values = np.linspace(0, 1, 12).reshape(3, 4)
str((values @ values.T).sum(axis=0).round(3)), np.linalg.norm(values), np.random.default_rng(0).random(3)
""",
    "sympy": """
import sympy as sp
x, y, n = sp.symbols("x y n")
sp.simplify(sp.sin(x) ** 2 + sp.cos(x) ** 2), sp.expand((x + y) ** 3), sp.factor(x**3 - y**3)
sp.apart(1 / (x * (x + 1))), str(sp.diff(sp.exp(x) * sp.cos(x), x)), sp.latex(sp.integrate(x * sp.exp(x), x))
sp.limit(sp.sin(x) / x, x, 0), sp.solve(x**3 - 6 * x + 4, x), sp.solve(sp.exp(x) - 3, x), sp.N(sp.pi, 20)
sp.solve([x + y - 3, x - y - 1], [x, y]), sp.summation(n**2, (n, 1, x))
sp.Matrix([[1, 2], [3, 4]]).inv(), sp.factorint(5040), sp.isprime(97)
sp.solveset(x**4 - 1, x), sp.nsolve(sp.cos(x) - x, x, 1), sp.series(sp.log(1 + x), x, 0, 4), sp.sympify("2*x + 1")
""",
}


def warm_up(names: Iterable[str]) -> list[str]:
    """Import modules and use those that have a warm-up; returns the names of those that cannot be imported."""
    missing: list[str] = []
    for name in (*ALWAYS, *names):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
        else:
            exec(WARM_UPS.get(name, ""), {"__name__": "__warm_up__"})
    gc.collect()
    # What is here already is never traversed again, and stays in pages that all processes share.
    gc.freeze()
    _collapse()
    return missing


def _collapse() -> None:
    """Put what libraries have filled into huge pages, where the kernel can: a fork copies one entry for 512 pages."""
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
    for span, access, _, _, _, *name in lines:
        if access != "rw-p" or name not in ([], ["[heap]"]):
            continue
        start, end = (int(address, 16) for address in span.split("-"))
        for place in range(-(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE, _HUGE):
            with suppress(OSError):  # of a kernel that cannot, or of a page that is empty
                libc.collapse(place, _HUGE)


def reseed() -> None:
    """After a fork: chance of the program's own, where a library would go on with what the server had drawn.

    `random` does it by itself.
    """
    for name in ("numpy.random", "sympy.core.random"):
        if (module := sys.modules.get(name)) is not None:
            module.seed()

"""What a program may read: the interpreter, the libraries, the packages of its environment, and nothing else.

Folders come by their real paths, so that no link leads out. A path of the interpreter's that is no folder of packages,
such as a checkout that was installed to be edited, is not among them.
"""

import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_PACKAGES = ("site-packages", "dist-packages")
DEVICES = ("null", "zero", "full", "random", "urandom")
PASSWD = "sandbox:x:1000:1000:sandbox:/tmp:/bin/false\n"
GROUP = "sandbox:x:1000:\n"


def interpreter() -> str:
    """The path by which programs start another interpreter: that of the environment, without links above it."""
    return os.path.join(os.path.realpath(os.path.dirname(sys.executable)), os.path.basename(sys.executable))


def folders_of_packages() -> list[str]:
    own = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    others = [path for path in sys.path if os.path.basename(path) in _PACKAGES]
    return [os.path.realpath(path) for path in (*own, *others) if os.path.isdir(path)]


def readable(extra: Sequence[str] = ()) -> list[str]:
    """Existing files and folders that are shown; one beneath another is left out.

    `extra` are folders of a configuration; raises `FileNotFoundError` for one that is not there.
    """
    base = os.path.realpath(sys.base_prefix)
    environment = os.path.dirname(os.path.dirname(interpreter()))
    standard = [sysconfig.get_path("stdlib"), os.path.join(base, "lib"), os.path.realpath(sys.executable)]
    # Neither its site-packages nor its executable is all there is to a virtual environment.
    marker = [os.path.join(environment, "pyvenv.cfg")]
    for path in extra:
        if not os.path.exists(path):
            raise FileNotFoundError(f"no such file or folder: {path}")
    there = filter(os.path.exists, (*_SYSTEM, *standard, *marker, *folders_of_packages(), *extra))
    return _outermost(os.path.realpath(path) for path in there)


def links() -> dict[str, str]:
    """Links that must be there besides: `/lib64` of a merged system, and the executable of an environment."""
    found = {path: os.readlink(path) for path in _SYSTEM if os.path.islink(path)}
    if os.path.realpath(sys.executable) != interpreter():
        found[interpreter()] = os.path.realpath(sys.executable)
    return found


def trim(extra: Sequence[str]) -> None:
    """Make this interpreter, and so all forks of it, look for modules and for itself only where something is shown."""
    shown = readable(extra)
    real = (os.path.realpath(path) for path in sys.path if path)
    sys.path[:] = [path for path in real if any(is_beneath(path, top) for top in shown)]
    sys.executable = interpreter()
    # Finders of editable installs know folders that are not there.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]


def is_beneath(path: str, top: str) -> bool:
    """Whether it is `top` or lies in it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def _outermost(paths: Iterable[str]) -> list[str]:
    found: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(is_beneath(path, top) for top in found):
            found.append(path)
    return found

"""Files by Landlock: a program reads what `visible` names, writes in its folder, and touches no other file.

From Linux 6.12 on it signals no process outside either, and reaches no abstract socket. On a kernel without Landlock
nothing happens: `is_there` says so.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

from . import libc, visible

_VERSION_FLAG = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE, _READ, _READ_FOLDER = 0x1, 0x2, 0x4, 0x8
_IOCTL = 1 << 15
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Number of rights that a version knows: one bit each; later ones know 16."""
_SCOPES = 0b11
"""Abstract sockets, and signals; from version 6 on."""


def version() -> int:
    """0 where the kernel has none."""
    try:
        return libc.syscall(libc.LANDLOCK_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def restrict(folder: str, *, extra: Sequence[str]) -> None:
    """Bind this process and all that come of it, for good; it must have given up new privileges."""
    known = version()
    if not known:
        return
    rights = (1 << _RIGHTS.get(known, 16)) - 1
    # Rights of files; rights of the network, where sockets are refused anyway; scopes.
    fields = (rights, 0, _SCOPES) if known >= 6 else (rights,)
    attributes = ctypes.create_string_buffer(struct.pack(f"={len(fields)}Q", *fields), 8 * len(fields))
    ruleset = libc.syscall(libc.LANDLOCK_CREATE_RULESET, attributes, 8 * len(fields), 0)
    for path in visible.readable(extra):
        _allow(ruleset, path, _EXECUTE | _READ | _READ_FOLDER)
    for name in visible.DEVICES:
        _allow(ruleset, f"/dev/{name}", _READ | _WRITE)
    _allow(ruleset, folder, rights & ~_IOCTL)
    libc.syscall(libc.LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    if not os.path.isdir(path):
        rights &= _EXECUTE | _READ | _WRITE
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    # struct landlock_path_beneath_attr is packed.
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place), 12)
    libc.syscall(libc.LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0, what=path)
    os.close(place)

"""The system calls that Python 3.11 has no name for. Each raises `OSError` where the kernel refuses."""

import ctypes
import os
from collections.abc import Iterable

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 38, 36
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2

# These have one number on all architectures.
_MOUNT_SETATTR, LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 442, 444, 445, 446
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MADV_COLLAPSE = 25
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    _checked(_libc.mount(_path(source), _path(target), _path(kind), ctypes.c_ulong(flags), _path(options)), target)


def bind(source: str, target: str) -> None:
    """Show a file or folder, with all that is mounted beneath it, at an existing place."""
    mount(source, target, None, MS_BIND | MS_REC)


def set_attributes(target: str, attributes: int, *, is_recursive: bool) -> None:
    """Add `MS_RDONLY`, `MS_NOSUID`, `MS_NODEV`, `MS_NOEXEC` to a mount, which loses none that it has."""
    # set, clear, propagation, user namespace; the four flags have their numbers here too.
    attr = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if is_recursive else 0
    syscall(_MOUNT_SETATTR, _AT_FDCWD, _path(target), flags, ctypes.byref(attr), ctypes.sizeof(attr), what=target)


def pivot_root(new: str, old: str) -> None:
    _checked(_libc.pivot_root(_path(new), _path(old)), new)


def detach(target: str) -> None:
    """Take a mount out of sight, with all beneath it."""
    _checked(_libc.umount2(_path(target), MNT_DETACH), target)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def join(namespace: int, flags: int) -> None:
    """Enter the namespace behind a descriptor."""
    _checked(_libc.setns(namespace, flags), "setns")


def prctl(option: int, *arguments: object) -> None:
    _checked(_libc.prctl(option, *_words([*arguments, 0, 0, 0, 0][:4])), f"prctl {option}")


def drop_capabilities() -> None:
    """Keep none; with `PR_SET_NO_NEW_PRIVS` none comes back."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def collapse(address: int, length: int) -> None:
    """Make huge pages of memory that is in use."""
    _checked(_libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_COLLAPSE), "madvise")


def syscall(number: int, *arguments: object, what: str = "") -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *_words(arguments)), what or f"syscall {number}")


def _words(arguments: Iterable[object]) -> list[object]:
    """Integers at their full width: what else ctypes passes is a pointer already."""
    return [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]


def _path(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result

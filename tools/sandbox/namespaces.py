"""Namespaces: what the server enters once, and what each call enters before a line of its program runs.

The server's root holds what `visible` names, read-only, and nothing of the host. When this process is root, the server
becomes an ordinary user behind it: limits on processes do not bind root, and files of others stay theirs.

A call has mounts, processes, network, IPC and names of its own: `/proc` shows its processes alone, `/tmp` (also there
as `/dev/shm`) is empty, limited in size and gone with it, and the network is not even a loopback. Its `init` stays in
the user namespace of the server; the program enters one more, so that the kernel counts its processes apart from its
neighbours', and keeps no capability there.
"""

import os
import socket
from collections.abc import Iterator, Sequence

from . import libc, visible

_OWN = libc.CLONE_NEWNS | libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
_SERVER = libc.CLONE_NEWUSER | libc.CLONE_NEWPID | libc.CLONE_NEWCGROUP | _OWN
_QUIET = libc.MS_NOSUID | libc.MS_NODEV
_USER, _NOBODY = 1000, 65534
"""Whom programs see as themselves; who they are, when this process is root."""
_HIDDEN = "/.under-tmp"
_MAX_INODES = 16_384


def enter_server(extra: Sequence[str]) -> None:
    """Leave the host behind, for the process and those it forks: the first of them is pid 1 of a namespace, and calls
    `begin_server`. Raises `OSError` where the kernel or a policy refuses; then the process is of no more use."""
    if os.geteuid() == 0:
        libc.unshare(libc.CLONE_NEWNS)
        _build_root(extra)
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        # A change of user takes /proc/self away, where the identity is written.
        libc.prctl(libc.PR_SET_DUMPABLE, 1)
        _unshare_user(_SERVER, user=os.geteuid(), group=os.getegid())
    else:
        _unshare_user(_SERVER, user=os.geteuid(), group=os.getegid())
        _build_root(extra)
    socket.sethostname("sandbox")


def begin_server() -> int:
    """In pid 1 of the server's namespace; returns the descriptor that `begin_call` wants."""
    libc.mount("proc", "/proc", "proc", _QUIET | libc.MS_NOEXEC)
    return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def begin_call(own_processes: int) -> None:
    """In the server: the next fork is pid 1 of a namespace."""
    libc.join(own_processes, libc.CLONE_NEWPID)
    libc.unshare(libc.CLONE_NEWPID)


def enter_call(*, disk_bytes: int) -> None:
    """In pid 1 of a call."""
    libc.unshare(_OWN)
    libc.mount("proc", "/proc", "proc", _QUIET | libc.MS_NOEXEC, "subset=pid")
    libc.mount("tmp", "/tmp", "tmpfs", _QUIET, f"mode=700,size={disk_bytes},nr_inodes={_MAX_INODES}")
    libc.bind("/tmp", "/dev/shm")
    for hidden in _beneath(_HIDDEN):
        _show(hidden, hidden.removeprefix(_HIDDEN))


def join_call(init: int) -> None:
    """In the program's process: the surroundings that pid 1 of its call has entered, by a descriptor of that."""
    libc.join(init, _OWN)


def enter_program() -> None:
    """In the program's process: a user namespace of its own, where it may do nothing."""
    _unshare_user(libc.CLONE_NEWUSER, user=_USER, group=_USER)
    libc.drop_capabilities()


def _unshare_user(flags: int, *, user: int, group: int) -> None:
    libc.unshare(flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{_USER} {user} 1"), ("gid_map", f"{_USER} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _build_root(extra: Sequence[str]) -> None:
    shown, links = visible.readable(extra), visible.links()
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    # First a root that holds the old one in a folder: what is shown may itself lie under /tmp.
    libc.mount("base", "/tmp", "tmpfs", _QUIET, "mode=755")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    libc.pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    libc.mount("root", "/new", "tmpfs", _QUIET, "mode=755")
    for folder in ("proc", "tmp", "dev/shm", "etc", _HIDDEN.strip("/")):
        os.makedirs(f"/new/{folder}")
    for path in shown:
        _show(f"/old{path}", f"/new{path}")
        libc.set_attributes(f"/new{path}", libc.MS_RDONLY | _QUIET, is_recursive=True)
    for path, target in links.items():
        os.makedirs(f"/new{os.path.dirname(path)}", exist_ok=True)
        os.symlink(target, f"/new{path}")
    # Each call mounts its own /tmp over this one, and shows there what is kept here.
    for path in _beneath("/new/tmp"):
        _show(path, f"/new{_HIDDEN}{path.removeprefix('/new')}")
    for name in visible.DEVICES:
        _show(f"/old/dev/{name}", f"/new/dev/{name}")
        libc.set_attributes(f"/new/dev/{name}", libc.MS_NOSUID | libc.MS_NOEXEC, is_recursive=False)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/new/dev/{name}")
    for name, text in (("passwd", visible.PASSWD), ("group", visible.GROUP)):
        with open(f"/new/etc/{name}", "w") as file:
            file.write(text)
    # A fresh /proc may be mounted in a user namespace only where a whole one is in sight already.
    libc.bind("/old/proc", "/new/proc")
    os.chdir("/new")
    # The old root ends up above the new one at the same place, and is taken off.
    libc.pivot_root(".", ".")
    libc.detach(".")
    os.chdir("/")
    libc.set_attributes("/", libc.MS_RDONLY | _QUIET, is_recursive=False)


def _show(source: str, target: str) -> None:
    """Make a file, folder or link visible at another place."""
    os.makedirs(target if os.path.isdir(source) else os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if not os.path.isdir(source):
        open(target, "a").close()
    libc.bind(source, target)


def _beneath(top: str) -> Iterator[str]:
    """Mounts, files and links beneath a folder of the sandbox's own."""
    for name in os.listdir(top):
        path = os.path.join(top, name)
        if os.path.isdir(path) and not os.path.islink(path) and not os.path.ismount(path):
            yield from _beneath(path)
        else:
            yield path

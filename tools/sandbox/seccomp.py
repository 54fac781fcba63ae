"""The filter of system calls: what no program needs and every escape begins with, refused as `EPERM`.

Refused are tracing and reading other processes, mounting, changing the root, namespaces, kernel keys, kernel modules,
`io_uring` (which runs calls behind the filter's back), handles of files, memory that no limit counts (`memfd`, System V
and POSIX queues), and sockets of families that namespaces do not contain, such as AF_VSOCK. Where there are no
namespaces no socket is made at all but pairs, and no process leaves the group by which it is killed.
"""

import ctypes
import errno
import platform
import struct
from functools import lru_cache

from . import libc

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in `struct seccomp_data`; of the argument, the low half."""
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NEW_NAMESPACES = (
    libc.CLONE_NEWNS
    | libc.CLONE_NEWCGROUP
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUSER
    | libc.CLONE_NEWPID
    | libc.CLONE_NEWNET
)
_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6."""
_X32 = 0x40000000

# name: (x86_64, aarch64); -1 where the architecture has none.
_REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
_REFUSED_WITHOUT_NAMESPACES = {"setpgid": (109, 154), "setsid": (112, 157)}
_SOCKET, _CLONE, _CLONE3 = (41, 198), (56, 220), 435
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Name to the column above, and what the kernel calls it."""


def prepare(*, has_namespaces: bool) -> None:
    """In the server: what `filter_calls` of its forks then need not make anew."""
    if platform.machine() in _ARCHITECTURES:
        _program(has_namespaces=has_namespaces)


def filter_calls(*, has_namespaces: bool) -> None:
    """Bind this process and all that come of it, for good; it must have given up new privileges.

    `has_namespaces` allows what stays within them, such as sockets of an empty network. Raises `OSError` where the
    kernel has no filters, or the architecture is not known here.
    """
    program = _program(has_namespaces=has_namespaces)
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and a pointer behind padding.
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    libc.prctl(libc.PR_SET_SECCOMP, libc.SECCOMP_MODE_FILTER, header)


@lru_cache
def _program(*, has_namespaces: bool) -> bytes:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter of system calls for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    refuse = _statement(_RETURN, _ERRNO | errno.EPERM)
    # Another architecture's calls have other numbers: 32-bit ones by `int 0x80`, and x32's by a bit.
    steps = [_statement(_LOAD, _ARCH), _jump(_EQUAL, architecture, 1, 0), _statement(_RETURN, _KILL)]
    steps += [_statement(_LOAD, _NR), _jump(_GREATER_EQUAL, _X32, 0, 1), refuse]
    refused = _REFUSED if has_namespaces else {**_REFUSED, **_REFUSED_WITHOUT_NAMESPACES}
    for numbers in refused.values():
        if numbers[column] >= 0:
            steps += [_jump(_EQUAL, numbers[column], 0, 1), refuse]
    # The flags of clone3 lie in memory that a filter cannot read; told that there is none, libc uses clone.
    steps += [_jump(_EQUAL, _CLONE3, 0, 1), _statement(_RETURN, _ERRNO | errno.ENOSYS)]
    steps += [_jump(_EQUAL, _CLONE[column], 0, 3), _statement(_LOAD, _FIRST_ARGUMENT)]
    steps += [_jump(_ANY_BIT, _NEW_NAMESPACES, 0, 1), refuse, _statement(_LOAD, _NR)]
    families = _FAMILIES if has_namespaces else ()
    steps += [_jump(_EQUAL, _SOCKET[column], 0, 2 + len(families)), _statement(_LOAD, _FIRST_ARGUMENT)]
    steps += [_jump(_EQUAL, family, len(families) - index, 0) for index, family in enumerate(families)]
    steps += [_statement(_RETURN, _ERRNO | errno.EAFNOSUPPORT), _statement(_RETURN, _ALLOW)]
    return b"".join(steps)


def _statement(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _jump(test: int, value: int, if_true: int, if_false: int) -> bytes:
    """Go on after skipping so many instructions."""
    return struct.pack("=HBBI", test, if_true, if_false, value)

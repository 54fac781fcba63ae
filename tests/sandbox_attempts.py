"""Attempts to get out of the sandbox: programs that say `escaped` where they succeed, and `contained` where not.

Each names what it may fail with: an attempt that fails for another reason proves nothing, and its test fails. Those
with `is_harmless` are also run without isolation, where they must succeed: that shows that they would.
"""

from typing import NamedTuple


class Attempt(NamedTuple):
    """`code` may use the names of `World.names`, and must raise `errors` where it is contained."""

    name: str
    code: str
    errors: str = "OSError"
    is_harmless: bool = False

    @property
    def program(self) -> str:
        body = "\n".join(f"    {line}" for line in self.code.strip().splitlines())
        return (
            f"{_PREAMBLE}\ntry:\n{body}\nexcept ({self.errors}):\n    print('contained')\nelse:\n    print('escaped')"
        )


_PREAMBLE = """
import ctypes, errno, os, signal, socket, stat, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as s:
        s.settimeout(5)
        s.connect(address)
        s.send(b'x')
def waiting_child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid
"""

FILES = (
    Attempt("a canary in $HOME", "open(HOME).read()", is_harmless=True),
    Attempt("a file of the run directory", "open(RUN).read()", is_harmless=True),
    Attempt("the data set with the answers", "open(ANSWERS).read()", is_harmless=True),
    Attempt("the folder of the data set", "os.listdir(os.path.dirname(ANSWERS))", is_harmless=True),
    Attempt("a symbolic link to it", "os.symlink(ANSWERS, 'link')\nopen('link').read()", is_harmless=True),
    Attempt("a hard link to it", "os.link(ANSWERS, ANSWERS + '.link')", is_harmless=True),
    Attempt("by /proc/self/root", "open('/proc/self/root' + ANSWERS).read()", is_harmless=True),
    Attempt("by /proc/self/cwd", "open('/proc/self/cwd/' + '../' * 40 + ANSWERS).read()", is_harmless=True),
    Attempt("up and up from /", "for _ in range(99): os.chdir('..')\nopen(ANSWERS[1:]).read()", is_harmless=True),
    Attempt("by the root of init", "open('/proc/1/root' + ANSWERS).read()"),
    Attempt("by the root of every process", "[open(f'/proc/{p}/root{ANSWERS}') for p in range(1, 99)]"),
    Attempt("password hashes", "open('/etc/shadow').read()"),
    Attempt("keys of the host", "os.listdir(os.path.expanduser('~root/.ssh'))"),
    Attempt("the checkout", "open(CHECKOUT + '/pyproject.toml').read()", is_harmless=True),
    Attempt(
        "devices",
        "open('/dev/' + next(n for n in ('mem', 'vda', 'sda', 'kmsg') if os.path.exists(n)), 'rb')",
        "StopIteration",
    ),
    Attempt("to make a device", "os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))", is_harmless=True),
    Attempt("to write into a library", "import json\nopen(json.__file__, 'a')", is_harmless=True),
    Attempt("to remove a library", "import json\nos.remove(json.__file__)"),
    Attempt("to plant a module", "import numpy\nopen(os.path.dirname(numpy.__file__) + '/planted.py', 'w')"),
    Attempt("to make a file in /", "open('/planted', 'w')", is_harmless=True),
    Attempt("to become someone in /etc/passwd", "open('/etc/passwd', 'a')", is_harmless=True),
    Attempt("settings of the kernel", "open('/proc/sys/kernel/core_pattern', 'r+')"),
    Attempt("sysrq", "open('/proc/sysrq-trigger', 'r+')"),
    Attempt("file handles", "check(libc.name_to_handle_at(-100, b'/', b'\\0' * 200, b'\\0' * 8, 0))"),
    Attempt(
        "libraries that are writable, or honour setuid",
        "import json\nassert os.statvfs(json.__file__).f_flag & 3 == os.ST_RDONLY | os.ST_NOSUID\nraise OSError",
    ),
)

NETWORK = (
    Attempt("TCP to this machine", "connect(socket.AF_INET, ('127.0.0.1', PORT))", is_harmless=True),
    Attempt("UDP to this machine", "connect(socket.AF_INET, ('127.0.0.1', PORT), socket.SOCK_DGRAM)", is_harmless=True),
    Attempt("IPv6 to this machine", "connect(socket.AF_INET6, ('::1', PORT))"),
    Attempt(
        "any interface but a dead loopback", "assert [n for _, n in socket.if_nameindex()] == ['lo']\nraise OSError"
    ),
    Attempt("a socket in a file", "connect(socket.AF_UNIX, SOCKET)", is_harmless=True),
    Attempt("an abstract socket", "connect(socket.AF_UNIX, ABSTRACT)", is_harmless=True),
    Attempt("raw packets", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", is_harmless=True),
    Attempt("frames", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", is_harmless=True),
    Attempt("netlink", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)", is_harmless=True),
    Attempt("the hypervisor", "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)"),
)

PROCESSES = (
    Attempt("another process in /proc", "os.stat(f'/proc/{PID}')", is_harmless=True),
    Attempt("the environment of others", "open(f'/proc/{PID}/environ').read()", is_harmless=True),
    Attempt("the environment of init", "open('/proc/1/environ').read()"),
    Attempt("the memory of init", "open('/proc/1/mem', 'rb')"),
    Attempt("a descriptor of init by name", "os.readlink('/proc/1/fd/0')"),
    Attempt("the namespaces of init", "os.open('/proc/1/ns/mnt', os.O_RDONLY)"),
    Attempt("a signal to another process", "os.kill(PID, 0)", is_harmless=True),
    Attempt(
        "a signal to the parent",
        "assert os.getppid(), 'none'\nos.kill(os.getppid(), 0)",
        "AssertionError",
        is_harmless=True,
    ),
    Attempt("to kill init", "os.kill(1, signal.SIGKILL)\nos.kill(1, signal.SIGTERM)\nos.kill(1, 0)\nraise OSError"),
    Attempt("to kill everyone", "os.kill(-1, signal.SIGKILL)"),
    Attempt("to trace", "pid = waiting_child()\ncheck(libc.ptrace(0x4206, pid, 0, 0))", is_harmless=True),
    Attempt("to trace init", "check(libc.ptrace(0x4206, 1, 0, 0))"),
    Attempt(
        "the memory of others",
        "b = ctypes.create_string_buffer(8)\nv = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)\n"
        "check(libc.process_vm_readv(waiting_child(), v, 1, v, 1, 0))",
        is_harmless=True,
    ),
    Attempt("a descriptor of init", "check(libc.syscall(438, os.pidfd_open(1), 0, 0))"),
    Attempt("a descriptor that was left open", "[os.fstat(fd) for fd in range(3, 64)]"),
    Attempt("to speak for the server", "os.write(3, b'{}')"),
    Attempt("priority", "os.nice(-5)", is_harmless=True),
    Attempt("more than the limits", "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError"),
)

POWERS = (
    Attempt(
        "capabilities",
        "lines = [line.split() for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm'))]\n"
        "assert [int(word, 16) for _, word in lines] == [0, 0]\nraise OSError",
    ),
    Attempt("to be root", "os.setuid(0)", is_harmless=True),
    Attempt("groups", "os.setgroups([0])", is_harmless=True),
    Attempt("a user namespace", "check(libc.unshare(0x10000000))", is_harmless=True),
    Attempt("a mount namespace", "check(libc.unshare(0x20000))", is_harmless=True),
    Attempt(
        "namespaces by clone", "check(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)) or os._exit(0)", is_harmless=True
    ),
    Attempt("namespaces by clone3", "check(libc.syscall(435, 0, 0))\n"),
    Attempt("to mount", "check(libc.mount(b'x', b'/tmp', b'tmpfs', 0, None))"),
    Attempt("to unmount /proc", "check(libc.umount2(b'/proc', 2))"),
    Attempt("to change the root", "os.chroot('.')", is_harmless=True),
    Attempt("to turn the root", "check(libc.pivot_root(b'.', b'.'))"),
    Attempt("to turn the clock", "time.clock_settime(time.CLOCK_REALTIME, 0)"),
    Attempt("another name of the host", "socket.sethostname('x')"),
    Attempt("kernel keys", "check(libc.syscall(250, 0, -3, 1))"),
    Attempt("eBPF", "check(libc.syscall(321, 0, 0, 0))"),
    Attempt("performance counters", "check(libc.syscall(298, 0, 0, -1, -1, 0))"),
    Attempt("page faults of its own", "check(libc.syscall(323, 0))"),
    Attempt("io_uring", "check(libc.syscall(425, 8, b'\\0' * 120))"),
    Attempt("memory that no limit counts", "os.memfd_create('x')", is_harmless=True),
    Attempt("shared memory that no limit counts", "check(libc.shmget(0, 4096, 0o1600))"),
    Attempt("to reboot", "check(libc.syscall(169, 0xfee1dead, 672274793, 0x01234567, 0))"),
)

HARMLESS = tuple(a for a in (*FILES, *NETWORK, *PROCESSES, *POWERS) if a.is_harmless)

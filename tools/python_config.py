"""The `tools.python` section: where programs run, how far apart, and what each may take."""

from typing import Annotated, Literal

from msgspec import Meta

from engine.config import Positive, PositiveFloat, Section


class PythonConfig(Section, frozen=True):
    """Where the `python` tool runs programs, and their limits."""

    isolation: Literal["auto", "filters", "none"] = "auto"
    """`auto`: namespaces of their own, and where these cannot be had what `filters` does: no network, and files by
    Landlock. `none` is for programs that you would run by hand: they may do whatever the user of this process may."""
    require_isolation: bool = False
    """Refuse to start where programs cannot have namespaces of their own."""
    url: str = ""
    """A server with SandboxFusion's interface, such as `http://10.0.0.9:8080`: programs run there, under its limits,
    and of the keys below only the first, the two of output and `max_concurrency` hold."""
    timeout_s: PositiveFloat = 30.0
    """Wall clock of one call."""
    cpu_s: Positive = 20
    """CPU time of one process."""
    memory_mib: Annotated[int, Meta(ge=64)] = 1024
    """Memory beyond that of the preloaded libraries: of each process, and of all processes of a call together."""
    disk_mib: Positive = 64
    """Everything in `/tmp`, which lies in memory."""
    max_file_mib: Positive = 16
    """Size of a file it may write."""
    max_open_files: Annotated[int, Meta(ge=16)] = 64
    """Open files of one process."""
    max_processes: Positive = 64
    """Processes and threads of a call. Without namespaces of all that its user runs, and root is not bound at all."""
    max_output_kib: Positive = 64
    """Output that is kept: the first of stdout, the last of stderr; what is beyond is read and thrown away."""
    max_written_mib: Positive = 16
    """Output at which a program is killed."""
    max_concurrency: Positive = 8
    """Calls at one time; a call that finds all places taken waits."""
    preload: tuple[str, ...] = ("numpy", "sympy")
    """Modules that are imported, and used a little, before any call."""
    readable: tuple[str, ...] = ()
    """Files and folders that programs may read, besides the interpreter and its packages."""
    recycle_calls: Positive = 10_000
    """Calls after which a warm interpreter is replaced by a new one."""
    interpreter: str = ""
    """Path of the interpreter; empty is the one that runs this process."""

"""How far a program is kept apart, in three degrees, and what the server asks of each.

| degree       | what it means                                                                                         |
|--------------|-------------------------------------------------------------------------------------------------------|
| `namespaces` | a system of its own: no network, no file but libraries, no process but its own; see `sandboxes`       |
| `filters`    | one system with the caller's: no socket, no session of its own, no file but libraries and its folder  |
|              | as far as the kernel has Landlock; it may see other processes, fill the disk, and leave other calls   |
|              | waiting while its files are removed; see `shared`                                                     |
| `none`       | limits alone: it may do whatever the user of this process may; see `shared`                           |
"""

from typing import Protocol


class Place(Protocol):
    """Where one program runs."""

    def fork(self) -> int:
        """In the server: as `os.fork`; the child becomes the program."""
        ...

    def enter(self) -> str:
        """In that child: get there; returns the folder to work in."""
        ...

    def confine(self) -> None:
        """In that child, when it needs nothing more: give up all power to leave."""
        ...

    def kill(self, pid: int) -> None:
        """Kill the unreaped program, and all that came of it."""
        ...

    def end(self, pid: int) -> int | None:
        """When the program has ended and is unreaped: kill all that came of it. What is returned is a descriptor that
        is readable when it is gone; None where it is gone already."""
        ...

    def leave(self) -> str:
        """When all is gone. Returns the name of the limit for whose sake it was killed, if it was."""
        ...


class Places(Protocol):
    """Where places come from; `take` orders them ahead."""

    name: str
    """The degree."""

    def fileno(self) -> int:
        """Readable when `receive` does not wait; -1 where it is never called for."""
        ...

    def receive(self) -> None:
        """Take in one that was ordered. Raises `OSError` where it could not be made."""
        ...

    def take(self, *, num_waiting: int) -> Place | None:
        """A place for one of so many calls; None while it is still to be received. Raises `OSError`."""
        ...

"""The error tree: what can go wrong, and whose business it is.

    ArpoError
    ├── ConfigError      a person wrote something wrong: one line, the path of the key, exit 2
    ├── DataError        a file a person named is missing, torn, or lacks a column: exit 2
    ├── GeneratorError   an inference server failed at a request, or speaks another dialect
    │   ├── GeneratorLostError    nobody answers there any more; somebody may again
    │   └── RequestRefusedError   a request that can run nowhere
    ├── ActorLostError   a rollout actor or a tool worker went away
    ├── AgentError       an agent of the user's raised, or returned what it may not
    │   └── OutOfRoomError        its path may grow no further
    ├── ToolError        a tool raised, hung, or returned what it may not
    ├── LearnerError     the trainer refused a batch or a checkpoint
    ├── BudgetError      a reservation that does not fit, or was settled twice
    ├── JournalError     the journal is torn, or does not belong to this run
    └── StalledError     a wait outlived its deadline; says who waits for what

Code of users raises what it likes; `boundary` gives it a type at the border. A bad rollout becomes data, a bad
loop ends the run.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager


class ArpoError(Exception):
    """Root of every error this project raises on purpose."""


class ConfigError(ArpoError, ValueError):
    """A configuration that cannot be used; the message holds the path of the key and the value."""


class DataError(ArpoError, ValueError):
    """A data file that cannot be used; the message names the file, and the row where there is one."""


class GeneratorError(ArpoError):
    """An inference backend failed. The path may be continued elsewhere from its own tokens."""


class GeneratorLostError(GeneratorError):
    """A backend went away, or has not come back yet. Another one, or the same one later, may go on."""


class RequestRefusedError(GeneratorError):
    """A request that no backend of this kind can run, such as one that is too long: trying again is of no use."""


class ActorLostError(ArpoError):
    """An actor that grows trees or runs tools went away. What it had said is known; the rest goes on elsewhere."""


class ToolError(ArpoError):
    """A tool failed. The path records it and goes on."""


class AgentError(ArpoError):
    """An agent of the user's failed. Its path records it; the others of the tree go on."""


class OutOfRoomError(AgentError):
    """A path has the tokens, or the turns, that it may have. An agent that lets it pass has a truncated path."""


class LearnerError(ArpoError):
    """The learner refused its input; nothing was applied."""


class BudgetError(ArpoError):
    """A ledger was asked for something it must never do."""


class JournalError(ArpoError):
    """The journal cannot be read, or belongs to another configuration."""


class StalledError(ArpoError):
    """A wait had no unblocker left."""


@contextmanager
def boundary(kind: type[ArpoError], what: str) -> Generator[None, None, None]:
    """Give whatever foreign code raises inside the block the type `kind`.

    Errors of this project and cancellation pass unchanged; anything else becomes
    `kind("what: TypeName: message")` with the original as its cause.
    """
    try:
        yield
    except ArpoError:
        raise
    except Exception as error:  # foreign code may raise anything: this is the one place where it is given a type
        raise kind(f"{what}: {type(error).__name__}: {error}") from error


@contextmanager
def own_cancellation(kind: type[ArpoError], what: str) -> Generator[None, None, None]:
    """Give a `CancelledError` that foreign code raises by itself the type `kind`; that of our task passes.

    Somebody else's future that was cancelled looks like the end of whoever waits for it, and would end a task in
    silence.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise kind(f"{what}: it cancelled itself") from None


def cause(error: BaseException) -> BaseException:
    """The first error inside nested groups; siblings that were cancelled because of it are not in there."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return error  # pyright: ignore[reportUnknownVariableType]

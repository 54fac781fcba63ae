"""A typed function becomes a tool: its annotations are the schema, its docstring is what the model reads.

    @tool(timeout_s=5)
    async def weather(city: str, days: Annotated[int, Meta(ge=1, le=7)] = 1) -> str:
        \"\"\"Forecast for a city.\"\"\"

`weather` is then a `Tool`: `weather.spec.parameters` is a JSON schema, `await weather.call({"city": "Ulm",
"days": "3"})` runs it with `days=3`, and `{"days": 9}` raises `MalformedCallError` with a text for the model.
"""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, get_type_hints, overload

import msgspec

from engine.errors import ConfigError, ToolError
from engine.types import ToolSpec

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_CONCURRENCY = 16


class MalformedCallError(ToolError):
    """The arguments do not fit the schema; the message is written for the model."""


class UnavailableError(ToolError):
    """What a tool depends on did not answer: worth another try, and counted against its host."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        """`retry_after_s` is how long the host asked to be left alone."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One tool as the executor sees it: what it is, how to run it, and under which limits."""

    spec: ToolSpec
    check: Callable[[dict[str, Any]], dict[str, Any]]
    """Convert arguments to what `run` takes, defaults included; raises `MalformedCallError`."""
    run: Callable[[dict[str, Any]], Awaitable[str]]
    """Run with checked arguments and give the result as text. Raises whatever it likes: `UnavailableError` where a
    host is to blame, `MalformedCallError` where only running could show that the arguments make no sense."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Deadline of one execution, its retries included; waiting for a permit does not count."""
    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    """Executions at one time."""
    calls_per_s: float = 0.0
    """Largest rate at which executions begin; 0 is no limit."""
    host: str = ""
    """Who stands behind it: tools of one host share permits, rate (the smallest of them) and circuit breaker, and a
    missed deadline counts against the host. Empty for a tool that is its own host."""
    version: str = ""
    """Changes when equal arguments may begin to give other results, such as with another corpus."""
    is_pure: bool = False
    """True where equal arguments give equal results, at any time and in any order."""
    depends_on_history: bool = False
    """True where equal arguments give equal results behind equal calls of the path. With neither of the two, such
    as for a tool that asks for the time, no result is ever used twice."""
    is_idempotent: bool = False
    """True where running twice does no more than running once; pure tools are."""
    max_retries: int = 0
    """How often an execution whose host did not answer is tried again."""
    visible: bool = True
    """False keeps it out of `specs`: it is called by the engine, never offered to a model."""
    aclose: Callable[[], Awaitable[None]] | None = None
    """Ends what the tool owns, such as processes; called when its executor is left."""

    def __post_init__(self) -> None:
        if self.max_retries and not (self.is_pure or self.is_idempotent):
            raise ConfigError(f"tool {self.name}: only what is declared idempotent may be tried again")

    async def call(self, arguments: dict[str, Any]) -> str:
        """`run` behind `check`, without any limit."""
        return await self.run(self.check(arguments))

    @property
    def name(self) -> str:
        return self.spec.name


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *,
    name: str = ...,
    timeout_s: float = ...,
    max_concurrency: int = ...,
    calls_per_s: float = ...,
    host: str = ...,
    version: str = ...,
    is_pure: bool = ...,
    depends_on_history: bool = ...,
    is_idempotent: bool = ...,
    max_retries: int = ...,
    visible: bool = ...,
    aclose: Callable[[], Awaitable[None]] | None = ...,
    inline: bool = ...,
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(function: Callable[..., Any] | None = None, /, *, name: str = "", inline: bool = False, **limits: Any) -> Any:
    """Make a `Tool` of a function, as `@tool` or `@tool(timeout_s=5, ...)`; `limits` are the fields of `Tool`.

    Coroutine functions run on the loop. Plain functions run in a worker thread, which a deadline abandons but cannot
    end; `inline=True` runs one on the loop instead, for functions that return in well under a millisecond. A result
    that is no string is given as JSON. Raises `TypeError` for a function without docstring or with an argument
    that is not annotated, or not passed by name.
    """
    if function is None:
        return lambda target: _make_tool(target, name=name, inline=inline, limits=limits)
    return _make_tool(function, name=name, inline=inline, limits=limits)


def _make_tool(function: Callable[..., Any], *, name: str, inline: bool, limits: dict[str, Any]) -> Tool:
    name = name or function.__name__
    description = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    if not description:
        raise TypeError(f"tool {name}: needs a docstring, which is what the model reads")
    arguments_type = _arguments_type(function, name=name)
    spec = ToolSpec(name=name, description=description, parameters=_json_schema(arguments_type, name=name))

    def check(arguments: dict[str, Any]) -> dict[str, Any]:
        return _convert(arguments, arguments_type, spec=spec)

    async def run(given: dict[str, Any]) -> str:
        if inspect.iscoroutinefunction(function):
            value = await function(**given)
        elif inline:
            value = function(**given)
        else:
            value = await _in_thread(function, given)
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()

    return Tool(spec=spec, check=check, run=run, **limits)


async def _in_thread(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call it in a daemon thread of its own: one that never returns keeps no other tool, and not the exit, waiting."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if done.done():
            return  # its caller stopped waiting
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)

    def work() -> None:
        value, error = None, None
        try:
            value = context.run(function, **given)
        except Exception as failure:  # whatever a user's function raises is raised where it is awaited
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, value, error)

    context = contextvars.copy_context()
    threading.Thread(target=work, name=f"tool {function.__name__}", daemon=True).start()
    return await done


def _arguments_type(function: Callable[..., Any], *, name: str) -> type[msgspec.Struct]:
    hints = get_type_hints(function, include_extras=True)
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: argument {parameter.name!r} cannot be passed by name")
        if parameter.name not in hints:
            raise TypeError(f"tool {name}: argument {parameter.name!r} has no annotation")
        field = (parameter.name, hints[parameter.name])
        fields.append(field if parameter.default is parameter.empty else (*field, parameter.default))
    return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)


def _json_schema(arguments_type: type[msgspec.Struct], *, name: str) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([arguments_type], ref_template="#/$defs/{name}")
    schema = {key: value for key, value in components.pop(name).items() if key != "title"}
    return {**schema, "$defs": components} if components else schema


def _convert(arguments: dict[str, Any], arguments_type: type[msgspec.Struct], *, spec: ToolSpec) -> dict[str, Any]:
    try:
        # strict=False because the tag format knows only text: "3" is a good integer.
        value = msgspec.convert(arguments, arguments_type, strict=False)
    except msgspec.ValidationError as error:
        names = ", ".join(spec.parameters["properties"]) or "none"
        raise MalformedCallError(f"{spec.name}: {error}. Arguments: {names}.") from None
    return {field: getattr(value, field) for field in arguments_type.__struct_fields__}

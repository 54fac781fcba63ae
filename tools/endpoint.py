"""An HTTP endpoint as a tool: arguments go out as a JSON object, and what comes back is the result."""

from typing import Any

import msgspec

from engine.config import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section
from engine.types import ToolSpec
from tools.http import Http, HttpClient, HttpRequest
from tools.json_schema import argument_check
from tools.keys import bearer
from tools.schema import DEFAULT_MAX_CONCURRENCY, DEFAULT_TIMEOUT_S, Tool, UnavailableError


class EndpointConfig(Section, frozen=True, kw_only=True):
    """One entry of `[[tools.http]]`."""

    name: str
    """What a policy calls it by."""
    description: str
    """What the model reads."""
    url: str
    """Gets a POST with the arguments as a JSON object."""
    parameters: dict[str, Any]
    """JSON schema of the arguments, an object."""
    result_key: str = ""
    """Take this key of the object that comes back; empty takes all of it. Text is shown as it is."""
    key_env: str = ""
    """Environment variable whose value is sent as `Authorization: Bearer ...`."""
    timeout_s: PositiveFloat = DEFAULT_TIMEOUT_S
    """Deadline of one call, its retries included."""
    max_concurrency: Positive = DEFAULT_MAX_CONCURRENCY
    """Calls at one time."""
    calls_per_s: NonNegativeFloat = 0.0
    """0 is no limit."""
    host: str = ""
    """Endpoints of one host share permits, rate and circuit breaker; empty is the URL's own host."""
    is_pure: bool = False
    """Equal arguments give equal results: used again, shared, and tried again."""
    is_idempotent: bool = False
    """Running twice does no more than running once."""
    max_retries: NonNegative = 0
    """Where the endpoint does not answer; needs `is_pure` or `is_idempotent`."""
    version: str = ""
    """Part of what results are cached by."""


def endpoint_tool(config: EndpointConfig, *, http: Http | None = None) -> Tool:
    """The tool; `http` replaces the network. Raises `ConfigError` for a missing key, or a schema that is none."""
    spec = ToolSpec(name=config.name, description=config.description, parameters=config.parameters)
    headers = bearer(config.key_env)
    client = http or HttpClient(max_connections=config.max_concurrency)

    async def run(arguments: dict[str, Any]) -> str:
        request = HttpRequest(url=config.url, method="POST", json=arguments, headers=headers)
        answer = await client.send(request)
        if answer.is_cut:
            raise UnavailableError(f"{config.name}: more than {request.max_bytes} bytes came back")
        if answer.content_type.startswith("text/"):
            return answer.text
        return _shown(_part(answer.json(), config))

    return Tool(
        spec=spec,
        check=argument_check(spec),
        run=run,
        timeout_s=config.timeout_s,
        max_concurrency=config.max_concurrency,
        calls_per_s=config.calls_per_s,
        host=config.host or config.url.partition("://")[2].partition("/")[0],
        version=f"{config.url} {config.version}",
        is_pure=config.is_pure,
        is_idempotent=config.is_idempotent,
        max_retries=config.max_retries,
        aclose=client.aclose,
    )


def _part(body: Any, config: EndpointConfig) -> Any:
    if not config.result_key:
        return body
    if not isinstance(body, dict) or config.result_key not in body:
        raise UnavailableError(f"{config.name}: what came back has no key {config.result_key!r}")
    return body[config.result_key]  # pyright: ignore[reportUnknownVariableType]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()

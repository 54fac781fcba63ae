"""Arguments checked against a JSON schema that came from elsewhere: an endpoint's, an MCP server's. The door to
`jsonschema`."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import ConfigError
from engine.types import ToolSpec
from tools.schema import MalformedCallError

_MAX_REASON_CHARS = 300


def argument_check(spec: ToolSpec) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What becomes `Tool.check`: defaults are filled in, text becomes what the schema asks for, the rest is checked.

    The tag format knows only text: "3" is a good integer, "[1, 2]" a good array. Raises `ConfigError` for what is no
    schema of an object.
    """
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.exceptions import best_match

    if spec.parameters.get("type") != "object":
        raise ConfigError(f"tool {spec.name}: the schema of its arguments is no object's")
    try:
        Draft202012Validator.check_schema(spec.parameters)
    except SchemaError as error:
        raise ConfigError(f"tool {spec.name}: its schema is none: {error.message} - at {error.json_path}") from None
    validator = Draft202012Validator(spec.parameters)
    properties: Mapping[str, Any] = spec.parameters.get("properties", {})

    def check(arguments: dict[str, Any]) -> dict[str, Any]:
        defaults = {name: part["default"] for name, part in properties.items() if _has(part, "default")}
        given = {name: _meant(value, properties.get(name)) for name, value in arguments.items()}
        checked = {**defaults, **given}
        error = best_match(validator.iter_errors(checked))
        if error is not None:
            where = f"{error.json_path.removeprefix('$.')}: " if error.path else ""
            names = ", ".join(properties) or "none"
            raise MalformedCallError(f"{spec.name}: {where}{error.message[:_MAX_REASON_CHARS]}. Arguments: {names}.")
        return checked

    return check


def _has(part: Any, key: str) -> bool:
    return isinstance(part, dict) and key in part


def _meant(value: Any, part: Any) -> Any:
    """Text read as JSON where the schema wants something else than text, and it can be read as such."""
    if not isinstance(value, str) or not isinstance(part, dict):
        return value
    kinds = part.get("type", "string")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    wanted: set[str] = {kinds} if isinstance(kinds, str) else set(kinds)  # pyright: ignore
    if "string" in wanted:
        return value
    try:
        return json.loads(value.lower() if value in ("True", "False") else value)
    except (ValueError, RecursionError):
        return value

"""A typed function becomes a tool: schema out of annotations, values out of text."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from engine.clock import run_virtual
from tools.schema import MalformedCallError, Tool, tool


class Place(msgspec.Struct):
    city: str


@tool
async def weather(city: str, days: Annotated[int, Meta(ge=1, le=7, description="how many")] = 1) -> str:
    """Forecast
    for a city.

    Not for the model.
    """
    return f"{city}:{days!r}"


def call(target: Tool, **arguments: Any) -> str:
    return run_virtual(target.call(arguments))


def test_the_spec_is_made_of_name_docstring_and_annotations() -> None:
    assert weather.name == weather.spec.name == "weather"
    assert weather.spec.description == "Forecast for a city."
    assert weather.spec.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 7, "description": "how many", "default": 1},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_a_nested_type_is_defined_inside_the_schema() -> None:
    @tool(inline=True)
    def visit(place: Place) -> str:
        """Go there."""
        return place.city

    assert visit.spec.parameters["properties"] == {"place": {"$ref": "#/$defs/Place"}}
    assert visit.spec.parameters["$defs"]["Place"]["required"] == ["city"]
    assert call(visit, place={"city": "Ulm"}) == "Ulm"


def test_text_is_converted_and_defaults_apply() -> None:
    assert call(weather, city="Ulm", days="3") == "Ulm:3"
    assert call(weather, city="Ulm") == "Ulm:1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "required field `city`"),
        ({"city": "Ulm", "days": 9}, "`int` <= 7"),
        ({"city": "Ulm", "days": "soon"}, "$.days"),
        ({"city": "Ulm", "hours": 1}, "unknown field `hours`"),
        ({"city": None}, "Expected `str`"),
    ],
)
def test_wrong_arguments_are_refused_with_a_text_for_the_model(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(MalformedCallError) as refusal:
        call(weather, **arguments)
    text = str(refusal.value)
    assert text.startswith("weather: ")
    assert said in text
    assert text.endswith("Arguments: city, days.")
    assert "\n" not in text


def test_nothing_runs_when_the_arguments_are_wrong() -> None:
    ran: list[int] = []

    @tool(inline=True)
    def count(n: int) -> str:
        """Count."""
        ran.append(n)
        return ""

    with pytest.raises(MalformedCallError):
        call(count, n="x")
    assert ran == []


def test_a_result_that_is_no_text_is_json() -> None:
    @tool(inline=True)
    def where() -> Place:
        """Where."""
        return Place(city="Ulm")

    assert call(where) == '{"city":"Ulm"}'


def test_a_plain_function_runs_in_a_thread_and_not_on_the_loop() -> None:
    @tool
    def is_on_loop() -> bool:
        """Is it."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return False
        return True

    assert asyncio.run(is_on_loop.call({})) == "false"


def test_limits_and_another_name_are_given_to_the_decorator() -> None:
    @tool(name="look_up", timeout_s=5.0, max_concurrency=2, calls_per_s=3.0, is_pure=True, visible=False)
    async def search(kind: Literal["a", "b"]) -> str:
        """Look it up."""
        return kind

    assert search.name == "look_up"
    assert (search.timeout_s, search.max_concurrency, search.calls_per_s) == (5.0, 2, 3.0)
    assert search.is_pure
    assert not search.visible
    assert not weather.is_pure
    assert weather.visible


def test_a_function_that_cannot_be_described_is_no_tool() -> None:
    def silent(a: int) -> None: ...

    def vague(a) -> None:
        """V."""

    def positional(a: int, /) -> None:
        """P."""

    for function, reason in ((silent, "docstring"), (vague, "no annotation"), (positional, "by name")):
        with pytest.raises(TypeError, match=f"tool {function.__name__}: .*{reason}"):
            tool(function)

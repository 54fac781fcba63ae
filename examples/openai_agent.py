"""A plain agent on the official client: the only line that knows of this project is the address.

arpo serve CONFIG
OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=... python examples/openai_agent.py "what is 20 plus 3 ?"
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from openai import AsyncOpenAI

Run = Callable[..., Awaitable[str]]
"""One of the agent's own tools: arguments by name, text back."""
MAX_TURNS = 8


class Answer(NamedTuple):
    """What the agent came to, and the conversation that a reward may name."""

    text: str
    conversation: str


class Turn:
    """One streamed turn, put together from its chunks."""

    def __init__(self) -> None:
        self.text = ""
        self.calls: dict[int, dict[str, Any]] = {}
        self.conversation = ""

    def add(self, chunk: Any) -> None:
        self.conversation = (chunk.model_extra or {}).get("conversation_id", self.conversation)
        for choice in chunk.choices:
            self.text += choice.delta.content or ""
            for part in choice.delta.tool_calls or ():
                call = self.calls.setdefault(part.index, {"id": part.id, "type": "function", "function": {}})
                call["function"]["name"] = part.function.name or call["function"].get("name", "")
                call["function"]["arguments"] = call["function"].get("arguments", "") + (part.function.arguments or "")

    @property
    def message(self) -> dict[str, Any]:
        calls = {"tool_calls": list(self.calls.values())} if self.calls else {}
        return {"role": "assistant", "content": self.text or None, **calls}


async def ask(
    client: AsyncOpenAI,
    question: str,
    *,
    tools: Sequence[dict[str, Any]] = (),
    run: dict[str, Run] | None = None,
    system: str = "",
    model: str = "policy",
    **sampling: Any,
) -> Answer:
    """Answer a question with tools, streaming every turn.

    `tools` are OpenAI's descriptions, `run` what they do; `sampling` is for the client, such as `temperature`.
    """
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    turn = Turn()
    for _ in range(MAX_TURNS):
        turn = Turn()
        more: dict[str, Any] = {"tools": list(tools), **sampling} if tools else sampling
        async for chunk in await client.chat.completions.create(model=model, messages=messages, stream=True, **more):
            turn.add(chunk)
        messages.append(turn.message)
        if not turn.calls:
            break
        for call in turn.calls.values():
            function = call["function"]
            known = (run or {}).get(function["name"])
            result = await known(**json.loads(function["arguments"])) if known else f"no tool {function['name']!r}"
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    return Answer(turn.text, turn.conversation)


async def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


async def main() -> None:
    async with AsyncOpenAI() as client:
        answer = await ask(client, " ".join(sys.argv[1:]), tools=[ADD], run={"add": add})
        sys.stdout.write(f"{answer.text}\n")


if __name__ == "__main__":
    asyncio.run(main())

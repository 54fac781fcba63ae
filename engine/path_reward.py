"""The reward of a path: what a tool that the engine calls instead of the model says of its text."""

import msgspec

from engine.errors import ToolError
from engine.interfaces import ToolHost
from engine.renderer import Renderer
from engine.tree import Path, TreeBuilder
from engine.types import Reward, ToolCall


async def reward_of(
    tree: TreeBuilder, path: Path, *, tools: ToolHost, renderer: Renderer, text: str | None = None
) -> Reward:
    """Score the response of a path, or `text` in its place.

    The tool `reward` gets `text`, `ground_truth` and `tools_run`. Raises `ToolError` where it says nothing that is a
    `Reward`.
    """
    if text is None:
        text = renderer.text(tree.token_ids(path)[path.prompt_length :])
    arguments = {"text": text, "ground_truth": tree.prompt.ground_truth, "tools_run": path.tools_run}
    result = await tools.call(ToolCall(name="reward", arguments=arguments))
    if result.status != "ok":
        raise ToolError(f"reward: {result.text}")
    try:
        return msgspec.json.decode(result.text, type=Reward)
    except msgspec.DecodeError as error:
        raise ToolError(f"reward: {error}") from None

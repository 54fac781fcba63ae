"""`arpo rollout`: trees for the prompts of a file, without a learner; one JSON line a trajectory."""

from pathlib import Path
from typing import IO, Any

import msgspec

from actors.config import Config
from actors.evaluate import Evaluation, grow_all
from actors.materials import materialise
from actors.runtime import LocalRuntime
from actors.sft import starting_model
from actors.watcher import Watcher
from engine.renderer import Renderer
from engine.types import TrajectoryGroup


class TrajectoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the output of `arpo rollout`."""

    prompt_id: str
    path: int
    forked_from: int
    """The path it branched off; -1 for one that began at the prompt."""
    fork_length: int
    """Tokens it inherited, prompt included."""
    status: str
    text: str
    """The response, tool results included."""
    reward: float
    is_correct: bool
    reason: str
    num_tool_calls: int
    """Along the path, inherited ones included."""
    num_tokens: int
    """Of the response."""
    ground_truth: str


async def rollout(config: Config, *, out: Path, run_dir: Path, concurrency: int, watcher: Watcher) -> dict[str, Any]:
    """Grow a tree for each prompt of `config.data` and write its trajectories to `out`, whole or not at all.

    Returns the totals: metrics of all trajectories, forks, calls, tokens prefilled and cached.
    """
    config = materialise(config)
    partial = out.with_name(f".{out.name}.partial")
    evaluation = Evaluation()
    totals: dict[str, Any] = dict.fromkeys(("forks", "requested", "executed", "prefilled", "cached"), 0)
    try:
        async with LocalRuntime(config, run_dir) as runtime:
            dataset = runtime.prompts(config.data)
            model_path = await starting_model(config, runtime, emit=watcher.event)
            with partial.open("wb") as lines:

                def write(group: TrajectoryGroup) -> None:
                    _write(group, runtime.renderer, lines)
                    evaluation.add(group)
                    totals["forks"] += group.num_forks
                    totals["requested"] += group.num_tool_calls_requested
                    totals["executed"] += group.num_tool_calls_executed
                    totals["prefilled"] += group.num_tokens_prefilled
                    totals["cached"] += group.num_tokens_cached
                    watcher.group(group)

                router = await runtime.start_generators(model_path)
                watcher.phase("rollouts", dataset.statistics.num_used * config.data.epochs)
                await grow_all(
                    dataset.prompts(),
                    runtime.rollouts(router, config=config.rollout, seed=config.run.seed, emit=lambda event: None),
                    config=config.rollout,
                    concurrency=concurrency,
                    on_group=write,
                )
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return {**evaluation.metrics(k=config.rollout.size), **totals}


def _write(group: TrajectoryGroup, renderer: Renderer, lines: IO[bytes]) -> None:
    prompt_length = group.prompt.token_ids.size
    for trajectory in group.trajectories:
        tokens = group.tree.token_ids(trajectory.leaf)[prompt_length:]
        line = TrajectoryLine(
            prompt_id=group.prompt.prompt_id,
            path=trajectory.path,
            forked_from=trajectory.forked_from,
            fork_length=trajectory.fork_length,
            status=trajectory.status.value,
            text=renderer.text(tokens),
            reward=trajectory.reward.score,
            is_correct=trajectory.reward.is_correct,
            reason=trajectory.reward.reason,
            num_tool_calls=trajectory.num_tool_calls,
            num_tokens=tokens.size,
            ground_truth=group.prompt.ground_truth,
        )
        lines.write(msgspec.json.encode(line) + b"\n")

"""A reward of your own: an invisible tool called `reward`; here short answers that name the truth are worth more.

python examples/custom_reward.py CONFIG
"""

import asyncio
import sys

from actors import Config, Session
from engine import Reward
from tools import tool


@tool(visible=False, timeout_s=10)
def reward(text: str, ground_truth: str, tools_run: tuple[str, ...] = ()) -> Reward:
    """Half a point for the truth, and up to half a point for being short."""
    is_correct = ground_truth in text
    brevity = 0.5 * max(0.0, 1.0 - len(text) / 1000)
    return Reward(
        score=0.5 * is_correct + brevity,
        is_correct=is_correct,
        reason="" if is_correct else "the truth is not in it",
        components={"truth": float(is_correct), "brevity": brevity, "calls": float(len(tools_run))},
    )


async def main(config: Config) -> list[float]:
    """Train as configured; the mean score of each step."""
    scores: list[float] = []
    async with Session(config, reward=reward) as session:
        async for step in session.steps():
            scores.append(step.reward)
            sys.stdout.write(f"step {step.step}: reward {step.reward:.3f}, success {step.success:.2f}\n")
    return scores


if __name__ == "__main__":
    asyncio.run(main(Config.load(sys.argv[1])))

"""An agent of your own: an async function that holds the policy. It tries, looks at its answer, and tries again.

Every call of the policy is a segment of a tree, so what it does can be trained like anything else.

python examples/custom_agent.py CONFIG
"""

import asyncio
import sys

from actors import Config, Policy, Session
from engine import Prompt

TRIES = 2
UNSURE = 1.0
"""Nats: where the policy is less sure than that, on average over a segment, a second opinion is taken."""


async def answer(policy: Policy, prompt: Prompt) -> float:
    """Let the policy call tools until it answers; what it is worth is whether the truth is in there."""
    turn = await policy.sample()
    while turn.calls:
        # The tools of the session, under its budgets; results of your own are as good: policy.answer("2.7 million").
        policy.answer(*await policy.run(turn.calls))
        turn = await policy.sample()
    return float(prompt.ground_truth in turn.text)


async def agent(policy: Policy, prompt: Prompt) -> float:
    """Answer; where the first words are unsure have another path go on from them, and ask again what was not right."""
    first = await policy.sample(max_tokens=4)
    if first.is_cut:
        if first.entropies.mean() > UNSURE:
            policy.fork(answer)  # where the tree has room for one more
        score = await answer(policy, prompt)
    else:
        score = float(prompt.ground_truth in first.text)
    for _ in range(TRIES - 1):
        if score > 0:
            break
        policy.say("that is not right , try again")
        score = 0.5 * await answer(policy, prompt)
    return score


async def main(config: Config, questions: list[str], truths: list[str]) -> list[float]:
    """The scores of all trajectories of these questions, after the configured steps of training."""
    async with Session(config, agent=agent) as session:
        async for step in session.steps():
            sys.stdout.write(f"step {step.step}: reward {step.reward:.3f}\n")
        groups = session.rollouts(session.prompts(questions, ground_truths=truths))
        return [t.reward.score async for group in groups for t in group.trajectories]


if __name__ == "__main__":
    asyncio.run(main(Config.load(sys.argv[1]), ["how many people live in Rome ?"], ["2.7 million"]))

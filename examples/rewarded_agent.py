"""Training from traffic: an agent on the official client, whose user says what was good; nothing here knows a learner.

arpo serve CONFIG serve.train=true serve.keys_file=keys.toml
OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=... REWARD_KEY=... python -m examples.rewarded_agent
"""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence

import aiohttp
from openai import AsyncOpenAI

from examples import openai_agent

QUESTIONS = ["what is 20 plus 3 ?", "what is 7 plus 8 ?", "what is 11 plus 4 ?", "what is 2 plus 2 ?"]


async def praise(http: aiohttp.ClientSession, url: str, conversation: str, *, reward: float, key: str) -> None:
    """Say what a conversation was worth, which ends it. This takes a key that the agent has not got."""
    path = f"{url}/conversations/{conversation}/reward"
    async with http.post(path, json={"reward": reward}, headers={"Authorization": f"Bearer {key}"}) as response:
        response.raise_for_status()


async def main(
    client: AsyncOpenAI, questions: Sequence[str], *, worth: Callable[[str, str], float], reward_key: str, rounds: int
) -> list[float]:
    """Ask all questions at once, reward the answers, and again; the mean reward of each round.

    `worth(question, answer)` stands for whatever a product knows: a click, a test that passed, a person.
    """
    means: list[float] = []
    async with aiohttp.ClientSession() as http:
        for number in range(1, rounds + 1):
            asked = [
                openai_agent.ask(client, question, tools=[openai_agent.ADD], run={"add": openai_agent.add})
                for question in questions
            ]
            answers = await asyncio.gather(*asked)
            rewards = [worth(question, answer.text) for question, answer in zip(questions, answers, strict=True)]
            url = str(client.base_url).rstrip("/")
            for answer, reward in zip(answers, rewards, strict=True):
                await praise(http, url, answer.conversation, reward=reward, key=reward_key)
            means.append(sum(rewards) / len(rewards))
            sys.stdout.write(f"round {number}: {means[-1]:.2f}\n")
    return means


def is_sum(question: str, answer: str) -> float:
    """Whether the sum is in the answer."""
    numbers = [int(word) for word in question.split() if word.isdecimal()]
    return float(str(sum(numbers)) in answer)


async def run() -> None:
    async with AsyncOpenAI() as client:
        await main(client, QUESTIONS, worth=is_sum, reward_key=os.environ["REWARD_KEY"], rounds=20)


if __name__ == "__main__":
    asyncio.run(run())

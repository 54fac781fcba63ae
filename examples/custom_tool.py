"""A tool of your own: a typed function under `@tool`, beside the configured ones.

python examples/custom_tool.py CONFIG "how many people live in Rome ?"
"""

import asyncio
import sys

from actors import Config, Session
from engine.errors import DataError
from tools import tool

PEOPLE = {"Rome": 2_700_000, "Oslo": 700_000}


@tool(is_pure=True, timeout_s=5)
async def population(city: str) -> str:
    """Number of people in a city."""
    if city not in PEOPLE:  # whatever is raised is a result of one line, which the policy reads
        raise DataError(f"no city {city!r}; known are {', '.join(PEOPLE)}")
    return str(PEOPLE[city])


async def main(config: Config, question: str) -> list[str]:
    """The responses of one tree, tool results included."""
    async with Session(config, tools=[population]) as session:
        groups = session.rollouts(session.prompts([question]))
        return [session.text(group, t) async for group in groups for t in group.trajectories]


if __name__ == "__main__":
    for response in asyncio.run(main(Config.load(sys.argv[1]), " ".join(sys.argv[2:]))):
        sys.stdout.write(f"{response}\n")

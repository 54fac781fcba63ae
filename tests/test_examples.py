"""The examples run: sessions with real processes; an agent's traffic, and what it is told of it, over real sockets."""

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import Config
from engine.branching import Uniform
from engine.rollout_config import RolloutConfig
from examples import custom_agent, custom_reward, custom_tool, rewarded_agent
from tests.gateway_world import REWARD_KEY, world
from tests.session_world import QUESTIONS, small_config
from tests.test_gateway_client import client_of

NO_FASTAPI = "fastapi is not installed; it is in requirements/dev.lock"


@pytest.mark.real
def test_a_custom_tool_is_called_and_its_results_are_read(tmp_path: Path) -> None:
    responses = asyncio.run(custom_tool.main(small_config(tmp_path / "world"), "who is it"))
    assert len(responses) == 4
    assert list(custom_tool.population.spec.parameters["properties"]) == ["city"]
    assert asyncio.run(custom_tool.population.call({"city": "Rome"})) == "2700000"


@pytest.mark.real
def test_a_custom_reward_is_trained_on(tmp_path: Path) -> None:
    scores = asyncio.run(custom_reward.main(small_config(tmp_path / "world", steps=2)))
    assert len(scores) == 2
    assert all(0 < score <= 1 for score in scores)


@pytest.mark.real
def test_a_custom_agent_is_trained_and_forks(tmp_path: Path) -> None:
    config = small_config(tmp_path / "world", steps=2)
    rollout: RolloutConfig = msgspec.structs.replace(config.rollout, size=6, branching=Uniform(initial=2))
    sampling = msgspec.structs.replace(rollout.sampling, max_response_tokens=96)
    config: Config = msgspec.structs.replace(config, rollout=msgspec.structs.replace(rollout, sampling=sampling))
    scores = asyncio.run(custom_agent.main(config, QUESTIONS[:2], ["two", "one"]))
    assert len(scores) == 12
    assert len(set(scores)) > 1


def test_an_agent_asks_and_its_user_praises(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, client_of(here.url) as client:
            questions = ["what is 20 plus 3 ?", "hello"]
            means = await rewarded_agent.main(
                client, questions, worth=rewarded_agent.is_sum, reward_key=REWARD_KEY, rounds=2
            )
            assert means == [0.5, 0.5]
            assert sorted(t.reward.score for group in here.groups for t in group.trajectories) == [0.0, 0.0, 1.0, 1.0]

    assert rewarded_agent.is_sum("what is 2 plus 2 ?", "the sum is 4.") == 1.0
    asyncio.run(main())


@pytest.mark.real
@pytest.mark.skipif(find_spec("fastapi") is None, reason=NO_FASTAPI)
def test_a_fastapi_service_answers_with_its_session(tmp_path: Path) -> None:
    import aiohttp
    import uvicorn

    from examples import fastapi_service

    class Server(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            self.is_up = asyncio.Event()

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            self.is_up.set()

    async def main() -> None:
        app = fastapi_service.make_app(small_config(tmp_path / "world"))
        server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
        serving = asyncio.create_task(server.serve())
        started = asyncio.create_task(server.is_up.wait())
        await asyncio.wait([serving, started], return_when=asyncio.FIRST_COMPLETED)
        (address,) = [socket.getsockname() for one in server.servers for socket in one.sockets]
        url = f"http://127.0.0.1:{address[1]}"
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{url}/answer", json={"question": "who is it", "max_tokens": 4}) as response:
                assert (response.status, (await response.json())["version"]) == (200, 0)
            async with http.post(f"{url}/trajectories", json={"question": "who is it"}) as response:
                assert len(await response.json()) == 4
            async with http.post(f"{url}/answer", json={"question": ""}) as response:
                assert response.status == 422
        server.should_exit = True
        await serving

    asyncio.run(main())

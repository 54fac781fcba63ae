"""`arpo eval` on answers that are there: scored by everything at once, a judge on loopback among it."""

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from actors.config import Config, HfModel
from actors.eval_command import Evaluate
from actors.eval_config import EvalConfig
from actors.measure import answers_folder
from actors.scoreboard import Scoreboard
from actors.watcher import Watcher
from engine.dataset import DataConfig
from engine.errors import ConfigError
from tools.judge import JudgeConfig

DATA = DataConfig(path="none.jsonl")


class LoopbackJudge:
    """A server that finds every answer right that has as many letters as the right one, and fails at `broken`."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.num_asked += 1
        asked = (await request.json())["messages"][0]["content"]
        golden, predicted = (line.split(": ")[1] for line in asked.splitlines()[-2:])
        if predicted == "broken":
            return web.Response(status=400, text="too long")
        content = "Correct" if len(golden) == len(predicted) else "Incorrect"
        return web.json_response({"choices": [{"message": {"content": content}}]})


def scored(judge: LoopbackJudge, *files: Path) -> Scoreboard:
    async def main() -> Scoreboard:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", judge.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            settings = EvalConfig(data=DATA, judge=JudgeConfig(url=url, model="m"))
            config = Config(model=HfModel(path="none"), data=DATA, eval=settings)
            return await Evaluate(config, source="run.toml", predictions=files).run(watcher=Watcher())
        finally:
            await runner.cleanup()

    return asyncio.run(main())


def write(path: Path, *answers: str) -> Path:
    lines = [json.dumps({"question": "?", "truths": ["Rome"], "answer": answer}) for answer in answers]
    path.write_text("\n".join(lines))
    return path


def test_answers_are_judged_once_and_what_the_judge_would_not_say_is_counted(tmp_path: Path) -> None:
    judge = LoopbackJudge()
    gaia = write(tmp_path / "gaia.jsonl", "rome", "Oslo", "Paris", "broken", "Oslo")
    musique = write(tmp_path / "musique.jsonl", "Oslo")
    found = scored(judge, gaia, musique)
    assert judge.num_asked == 3, "Oslo once, Paris, and what was refused"
    assert {name: (one.metric, one.value, one.num_missing) for name, one in found.sets.items()} == {
        "gaia": ("judge", 0.75, 1),
        "musique": ("f1", 0.0, 0),
    }
    assert scored(judge, gaia, musique) == found
    assert judge.num_asked == 4, "only what has no verdict is asked again"


def test_the_answers_of_another_policy_or_sampling_have_another_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")

    def folder(**changes: object) -> Path:
        settings = EvalConfig(**({"data": DATA} | changes))  # pyright: ignore[reportArgumentType]
        return answers_folder(Config(model=HfModel(path=str(tmp_path)), data=DATA, eval=settings), settings, stem="x")

    assert folder() == folder(
        concurrency=3, judge=JudgeConfig(url="http://j", model="m"), data=DataConfig(path="b.jsonl")
    )
    assert folder().parent == Path("runs")
    assert folder().name.startswith("eval-x-")
    other = [folder(samples=2), folder(data=DataConfig(path="none.jsonl", system_prompt="Think."))]
    before = folder()
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert len({before, folder(), *other}) == 4, "as have other weights"


def test_there_must_be_something_to_do() -> None:
    plain = Config(model=HfModel(path="none"), data=DATA)
    with pytest.raises(ConfigError, match="needs a CONFIG, or --predictions"):
        Evaluate(None)
    with pytest.raises(ConfigError, match=r"run\.toml: no \[eval\] section"):
        Evaluate(plain, source="run.toml")
    with pytest.raises(ConfigError, match="do not go with them"):
        Evaluate(plain, source="run.toml", predictions=[Path("x.jsonl")], data=["y.jsonl"])

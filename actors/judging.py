"""Judging: verdicts for all predictions that need one, asked for side by side, and each kept on disk at once."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from actors.predictions import Prediction
from actors.scoring import Scored
from actors.watcher import Watcher
from engine.errors import DataError, boundary
from tools.judge import Endpoint, Judge, JudgeConfig, Verdict


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    is_correct: bool


_DECODER = msgspec.json.Decoder(_Line)


class Verdicts:
    """Verdicts by what was judged and by whom. A missing one is not kept: it is asked for again."""

    def __init__(self, path: Path, *, model: str) -> None:
        """Raises `DataError` for a file that holds something else; a line that a crash tore is no verdict."""
        self._path = path
        self._model = model
        self._known: dict[str, bool] = {}
        with boundary(DataError, str(path)):
            lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
            for line in lines[:-1]:
                said = _DECODER.decode(line)
                self._known[said.key] = said.is_correct
            if lines[-1]:
                path.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))

    def key(self, prediction: Prediction) -> str:
        """The same for the same question, right answers, answer and judge."""
        said = (self._model, prediction.question, prediction.truths, prediction.answer)
        return hashlib.blake2b(msgspec.json.encode(said), digest_size=12).hexdigest()

    def get(self, key: str) -> bool | None:
        return self._known.get(key)

    def keep(self, key: str, verdict: Verdict) -> None:
        if verdict.is_correct is None:
            return
        self._known[key] = verdict.is_correct
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(_Line(key=key, is_correct=verdict.is_correct)) + b"\n")


async def judge_all(
    scored: Sequence[Scored], config: JudgeConfig, endpoint: Endpoint, *, verdicts: Verdicts, watcher: Watcher
) -> list[Scored]:
    """The same predictions with a verdict in their scores, where one was needed and there is one.

    Equal answers to one question are judged once. Raises `ConfigError` for an endpoint that refuses every question.
    """
    judge = Judge(config, endpoint)
    open_ones: defaultdict[str, list[Prediction]] = defaultdict(list)
    for one in scored:
        if one.metric == "judge" and one.value is None:
            open_ones[verdicts.key(one.prediction)].append(one.prediction)
    asked = {key: same[0] for key, same in open_ones.items() if verdicts.get(key) is None}

    async def ask(key: str, prediction: Prediction) -> None:
        verdict = await judge.judge(prediction.question, truths=prediction.truths, answer=prediction.answer or "")
        verdicts.keep(key, verdict)
        watcher.verdict(verdict.is_correct)

    if asked:
        watcher.phase("judge", len(asked))
    async with asyncio.TaskGroup() as tasks:
        for key, prediction in asked.items():
            tasks.create_task(ask(key, prediction), name=f"judge {prediction.set} {prediction.row}")
    return [_with_verdict(one, verdicts) for one in scored]


def _with_verdict(scored: Scored, verdicts: Verdicts) -> Scored:
    if scored.metric != "judge" or scored.value is not None:
        return scored
    said = verdicts.get(verdicts.key(scored.prediction))
    if said is None:
        return scored
    return msgspec.structs.replace(scored, scores={**scored.scores, "judge": float(said)})

"""What `arpo eval` does: get the answers, by asking or from files, score them, and have the judge say the rest."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from actors.config import Config
from actors.display import Display
from actors.judging import Verdicts, judge_all
from actors.measure import answers_folder, measure
from actors.predictions import Prediction, read_predictions
from actors.scoreboard import Scoreboard, remarks, scoreboard, table
from actors.scoring import score_all
from actors.watcher import Watcher
from engine.config import to_json
from engine.errors import ConfigError
from tools.judge import make_endpoint

VERDICTS = "verdicts.jsonl"


class Evaluate:
    """One call of `arpo eval`.

    Without a `folder` the answers lie in one of `run.dir` that belongs to this policy and sampling: the same command
    goes on where it was interrupted, and another file is added to what is there.
    """

    def __init__(
        self,
        config: Config | None,
        *,
        source: str = "",
        data: Sequence[str] = (),
        folder: Path | None = None,
        predictions: Sequence[Path] = (),
    ) -> None:
        """`source` is the configuration's file, `predictions` are files to score instead of asking.

        Raises `ConfigError` where there is nothing to do.
        """
        if not predictions and config is None:
            raise ConfigError("arpo eval needs a CONFIG, or --predictions")
        if not predictions and config is not None and config.eval is None:
            raise ConfigError(f"{source}: no [eval] section, and no --data - at $.eval")
        if predictions and (data or folder):
            raise ConfigError("--predictions are answers that are there: --data and --out do not go with them")
        self._config = config
        self._settings = None if config is None else config.eval
        self._data = data
        self._predictions = predictions
        self.folder = folder
        """Where the answers are kept; None where none are."""
        if self.folder is None and not predictions and config is not None and config.eval is not None:
            self.folder = answers_folder(config, config.eval, stem=Path(source).stem)

    async def run(self, *, watcher: Watcher) -> Scoreboard:
        """Ask, or read; then score. Raises `DataError`, naming the line, for predictions that are none."""
        if self._predictions:
            predictions = [prediction for path in self._predictions for prediction in read_predictions(path)]
            first = self._predictions[0]
            return await self._score(predictions, verdicts=first.with_name(f"{first.name}.{VERDICTS}"), watcher=watcher)
        config, settings, folder = self._config, self._settings, self.folder
        assert config is not None
        assert settings is not None
        assert folder is not None
        data = self._data or [settings.data.path]
        predictions = await measure(config, settings, data=data, folder=folder, watcher=watcher)
        board = await self._score(predictions, verdicts=folder / VERDICTS, watcher=watcher)
        (folder / "config.json").write_bytes(to_json(config))
        (folder / "scores.json").write_bytes(msgspec.json.format(msgspec.json.encode(board), indent=2))
        return board

    async def _score(self, predictions: Sequence[Prediction], *, verdicts: Path, watcher: Watcher) -> Scoreboard:
        judge = None if self._settings is None else self._settings.judge
        metrics = {} if self._settings is None else self._settings.metric
        scored = score_all(predictions, metrics=metrics, has_judge=judge is not None)
        if judge is not None:
            async with make_endpoint(judge) as endpoint:
                kept = Verdicts(verdicts, model=judge.model)
                scored = await judge_all(scored, judge, endpoint, verdicts=kept, watcher=watcher)
        samples = max((prediction.sample for prediction in predictions), default=0) + 1
        return scoreboard(scored, samples=samples)


def show(board: Scoreboard, display: Display, *, folder: Path | None) -> None:
    """The table, what its reader must know besides, and where the answers are."""
    display.grid("evaluation, in percent", *table(board))
    for remark in remarks(board):
        display.note(remark)
    if folder is not None:
        display.note(f"the answers are in {folder}")

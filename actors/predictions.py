"""Predictions: what a policy answered, as lines of JSON that a later process goes on from.

    {"set": "hotpotqa", "row": 0, "sample": 0, "question": "...", "truths": ["Rome"], "answer": "Rome", ...}

Whoever has answers of another system writes `truths` and `answer` (or the whole `text` of the response) and leaves the
rest out.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from engine.answers import alternatives
from engine.dataset_files import Row
from engine.errors import DataError, boundary
from engine.renderer import Renderer
from engine.types import NodeKind, RolloutStatus, Trajectory, TrajectoryGroup
from tools.answers import final_answer

logger = logging.getLogger(__name__)

UNNUMBERED = -1


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer to one question. Produced by `arpo eval`, or by anybody; consumed by `scoring`."""

    truths: tuple[str, ...]
    """Right answers."""
    answer: str | None = None
    """What was answered; read from `text` where that is given instead, None where there is no answer in it."""
    text: str = ""
    """The response; of ours what the policy wrote behind its last tool result."""
    set: str = ""
    """Name of the question's set; the file's where it is not said."""
    row: int = UNNUMBERED
    """Of the question in its set; where it is not said, each line is a question of its own."""
    sample: int = 0
    question: str = ""
    ability: str = ""
    """`math` or `qa`, where the data say so."""
    level: str = ""
    """How hard the question is, in the words of the data."""
    num_tool_calls: int = 0
    status: RolloutStatus = RolloutStatus.COMPLETED
    score: float | None = None
    """Of the run's reward."""
    is_correct: bool | None = None
    """The reward's own idea of it."""


_DECODER = msgspec.json.Decoder(Prediction)


def predictions_of(group: TrajectoryGroup, *, row: Row, name: str, renderer: Renderer) -> list[Prediction]:
    """The trajectories of a question of the set `name`, as predictions."""
    found: list[Prediction] = []
    for sample, trajectory in enumerate(group.trajectories):
        text = renderer.text(_last_segment(group, trajectory))
        found.append(
            Prediction(
                set=name,
                row=row.index,
                sample=sample,
                question=group.prompt.question,
                truths=alternatives(row.ground_truth),
                answer=final_answer(text),
                text=text,
                ability=row.ability,
                level=row.level,
                num_tool_calls=trajectory.num_tool_calls,
                status=trajectory.status,
                score=trajectory.reward.score,
                is_correct=trajectory.reward.is_correct,
            )
        )
    return found


def _last_segment(group: TrajectoryGroup, trajectory: Trajectory) -> np.ndarray:
    """What the policy sampled behind the last observation."""
    tokens: list[np.ndarray] = []
    for place in reversed(group.tree.path_to(trajectory.leaf)):
        node = group.tree.nodes[place]
        if node.kind is not NodeKind.SAMPLED:
            break
        tokens.insert(0, node.token_ids)
    return np.concatenate([np.zeros(0, np.int32), *tokens])


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The predictions of a file, complete: set, row and answer are there. Raises `DataError`, naming the line."""
    with boundary(DataError, str(path)):
        lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            said = _DECODER.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: line {number + 1}: {error}") from None
        if not said.truths:
            raise DataError(f"{path}: line {number + 1}: no right answer - at `$.truths`")
        yield msgspec.structs.replace(
            said,
            set=said.set or path.stem,
            row=number if said.row == UNNUMBERED else said.row,
            answer=final_answer(said.text) if said.answer is None else said.answer,
        )


class PredictionFile:
    """The predictions of one set on disk; each question's are appended together when they are there.

    A last line that a crash tore is dropped. Where a question was asked twice, the later answers count.
    """

    def __init__(self, path: Path, *, samples: int) -> None:
        self._path = path
        self._samples = samples
        self._drop_torn_line()
        self._rows: defaultdict[int, dict[int, Prediction]] = defaultdict(dict)
        if path.exists():
            self._take(read_predictions(path))

    @property
    def done(self) -> frozenset[int]:
        """Rows of which there are all samples, and none failed."""
        return frozenset(
            row
            for row, samples in self._rows.items()
            if len(samples) == self._samples and all(p.status is not RolloutStatus.FAILED for p in samples.values())
        )

    def of(self, rows: Sequence[int]) -> list[Prediction]:
        """The predictions for these rows, by row and sample."""
        return [prediction for row in sorted(rows) for _, prediction in sorted(self._rows[row].items())]

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Write the predictions of one question."""
        with self._path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(prediction) + b"\n" for prediction in predictions))
        self._take(predictions)

    def _take(self, predictions: "Sequence[Prediction] | Iterator[Prediction]") -> None:
        for prediction in predictions:
            self._rows[prediction.row][prediction.sample] = prediction

    def _drop_torn_line(self) -> None:
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            logger.warning("%s: a torn last line is dropped", self._path)
            with self._path.open("r+b") as file:
                file.truncate(whole)

"""PromptDataset: the rows of a file as prompts, in an order that is the same for every process of a run.

The file is read and checked when the data set is made; prompts are tokenised while they are taken.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.coins import seed_of
from engine.config import NonNegative, Positive, Section
from engine.dataset_files import ANSWER_COLUMN, PROMPT_COLUMN, Row, read_rows
from engine.errors import DataError
from engine.types import Int32, Prompt

logger = logging.getLogger(__name__)

_TORN_BOXED, _BOXED = "\x08oxed", "\\boxed"


class DataConfig(Section, frozen=True):
    """Which questions a run asks, and in which order. The columns default to those of ARPO's files."""

    path: str
    """A `.parquet` or `.jsonl` file."""
    limit: Positive | None = None
    """Use only so many rows, the first ones of the file that have an answer."""
    epochs: Positive = 1
    """Passes over the rows."""
    order: Literal["shuffled", "file"] = "shuffled"
    """`shuffled` anew for each epoch; `file` keeps the rows as they lie."""
    shuffle_seed: NonNegative = 0
    """Of the order; another one asks the same questions in another order."""
    max_prompt_tokens: Positive = 2048
    """Longest prompt, in tokens."""
    overlong: Literal["error", "skip"] = "error"
    """What becomes of a row whose prompt has more tokens."""
    system_prompt: str | None = None
    """Replaces the system message of every row, or goes before a row that has none."""
    prompt_column: str = PROMPT_COLUMN
    """Messages, or the text of a question."""
    answer_column: str = ANSWER_COLUMN
    """A string, a number, or a list of alternatives. A file without these two, where they are the defaults, is
    read as a benchmark: `engine.benchmark_rows`."""
    source_column: str = "data_source"
    """Names the row's origin in metrics; without this column it is the file's name."""


class DataStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the rows of a file."""

    num_rows: int
    num_without_answer: int
    """Left out: no reward could tell right from wrong."""
    num_mended: int
    """Used rows in whose prompt a backspace that once was `\\b` was made `\\boxed` again."""
    num_used: int
    """Rows of one epoch."""
    num_overlong: int
    """Rows left out as too long, among those tokenised up to now."""


class PromptRenderer(Protocol):
    """What the data set needs of an `engine.renderer.Renderer`."""

    def render_prompt(self, messages: Sequence[dict[str, str]]) -> Int32: ...


class PromptDataset:
    """All prompts of a run: `epochs` passes over the used rows, each in its own order.

    A *position* counts rows from 0 over all epochs: with 180 rows, position 200 is the 21st of epoch 1. A run that
    took prompts up to `p` goes on with `prompts(start=position_of(p) + 1)`. Raises `DataError`, one line that names
    the file, where it cannot be used.
    """

    def __init__(self, config: DataConfig, *, renderer: PromptRenderer) -> None:
        self.config = config
        self._renderer = renderer
        rows = list(
            read_rows(
                Path(config.path),
                prompt=config.prompt_column,
                answer=config.answer_column,
                source=config.source_column,
            )
        )
        used = [row for row in rows if row.ground_truth][: config.limit]
        if not used:
            raise DataError(f"{config.path}: none of {len(rows)} rows has an answer")
        self._rows = [_mend(row) for row in used]
        self._places = {row.index: place for place, row in enumerate(self._rows)}
        self._overlong: set[int] = set()
        self._statistics = DataStatistics(
            num_rows=len(rows),
            num_without_answer=sum(not row.ground_truth for row in rows),
            num_mended=sum(old is not new for old, new in zip(used, self._rows, strict=True)),
            num_used=len(used),
            num_overlong=0,
        )
        self._log()

    def __len__(self) -> int:
        """Positions of all epochs; fewer prompts come where overlong ones are skipped."""
        return len(self._rows) * self.config.epochs

    @property
    def statistics(self) -> DataStatistics:
        """Counts of rows, those too long among the rows tokenised up to now."""
        return msgspec.structs.replace(self._statistics, num_overlong=len(self._overlong))

    def row(self, prompt: Prompt) -> Row:
        """The row that a prompt of this data set was made from."""
        return self._rows[self._places[prompt.row]]

    def prompts(self, *, start: int = 0) -> Iterator[Prompt]:
        """Prompts from position `start` to the end of the last epoch.

        Raises `DataError` for a prompt that is too long, where the configuration says so.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"a position lies between 0 and {len(self)}, got {start=}")
        first_epoch, offset = divmod(start, len(self._rows))
        for epoch in range(first_epoch, self.config.epochs):
            places: list[int] = self._order(epoch)[offset:].tolist()
            for place in places:
                prompt = self._prompt(self._rows[place], epoch=epoch)
                if prompt is not None:
                    yield prompt
            offset = 0

    def longest(self) -> int:
        """Tokens of the longest prompt of an epoch, all of them tokenised to see; 0 where none is short enough.

        Raises `DataError` where `prompts` would, before anything has been trained on the others.
        """
        prompts = (self._prompt(row, epoch=0) for row in self._rows)
        return max((prompt.token_ids.size for prompt in prompts if prompt is not None), default=0)

    def position_of(self, prompt: Prompt) -> int:
        """Where a prompt of this data set stands. Raises `DataError` for one of another data set."""
        place = self._places.get(prompt.row)
        if place is None or not 0 <= prompt.epoch < self.config.epochs:
            raise DataError(f"{self.config.path}: {prompt.prompt_id} is not a prompt of this data set")
        return prompt.epoch * len(self._rows) + int(np.flatnonzero(self._order(prompt.epoch) == place)[0])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self.config.order == "file":
            return np.arange(len(self._rows))
        bits = np.random.PCG64(seed_of(self.config.shuffle_seed, "epoch", epoch))
        # Sorting raw output, rather than asking for a permutation: numpy promises the same bits for ever, and no more.
        return np.argsort(bits.random_raw(len(self._rows)), kind="stable")

    def _prompt(self, row: Row, *, epoch: int) -> Prompt | None:
        messages = _with_system(row.messages, self.config.system_prompt)
        token_ids = self._renderer.render_prompt(messages)
        if len(token_ids) > self.config.max_prompt_tokens:
            problem = f"{len(token_ids)} tokens, max_prompt_tokens is {self.config.max_prompt_tokens}"
            if self.config.overlong == "error":
                raise DataError(f"{self.config.path}: row {row.index}: {problem}")
            if row.index not in self._overlong:
                logger.info("%s: row %d is left out: %s", self.config.path, row.index, problem)
            self._overlong.add(row.index)
            return None
        questions = [message["content"] for message in messages if message["role"] == "user"]
        return Prompt(
            prompt_id=f"e{epoch}-r{row.index}",
            epoch=epoch,
            row=row.index,
            token_ids=token_ids,
            question=questions[-1] if questions else "",
            ground_truth=row.ground_truth,
            data_source=row.data_source,
        )

    def _log(self) -> None:
        counts = self._statistics
        if counts.num_mended:
            logger.warning(
                "%s: %d rows held a backspace where \\boxed was meant; mended on reading",
                self.config.path,
                counts.num_mended,
            )
        if counts.num_without_answer:
            logger.warning("%s: %d rows without an answer are left out", self.config.path, counts.num_without_answer)


def _mend(row: Row) -> Row:
    """The row with `\\boxed` for backspace and `oxed`; the very same row where nothing was torn."""
    if not any(_TORN_BOXED in message["content"] for message in row.messages):
        return row
    messages = tuple({**m, "content": m["content"].replace(_TORN_BOXED, _BOXED)} for m in row.messages)
    return msgspec.structs.replace(row, messages=messages)


def _with_system(messages: Sequence[dict[str, str]], system_prompt: str | None) -> list[dict[str, str]]:
    if system_prompt is None:
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *(m for m in messages if m["role"] != "system")]

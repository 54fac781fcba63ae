"""Cold start: whether each supervised stage is one that its run would begin, and could end."""

from collections.abc import Iterator

from actors.config import SftConfig
from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, refused
from actors.sft import LOSS_WINDOW
from learner.config import Nll


def check_cold_start(case: Case) -> Iterator[Finding]:
    for number, stage in enumerate(case.config.sft):
        problems = list(_problems(f"sft.{number}", stage))
        yield from problems
        if not problems:
            end = f", or until the loss is below {stage.until_loss:g}" if stage.until_loss is not None else ""
            yield ok(f"sft.{number}", f"{stage.steps:,} steps of {stage.batch_size} traces{end}")


def _problems(key: str, stage: SftConfig) -> Iterator[Finding]:
    if not isinstance(stage.learner.loss, Nll):
        yield refused(f"{key}.learner.loss", "a cold start needs loss.kind = 'nll'")
    if not stage.traces:
        yield refused(f"{key}.traces", "there are none")
    if stage.shares and len(stage.shares) != len(stage.traces):
        yield refused(f"{key}.shares", f"{len(stage.shares)} shares for {len(stage.traces)} files of traces")
    if stage.until_loss is not None and stage.steps < LOSS_WINDOW:
        text = f"it is about the mean of {LOSS_WINDOW} steps, and there are {stage.steps}"
        yield refused(f"{key}.until_loss", text)

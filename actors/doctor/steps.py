"""Steps: whether what happens every so many steps happens at all before the last one."""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, warning
from actors.doctor.layout import learners
from learner.config import CosineSchedule, LearnerConfig


def check_steps(case: Case) -> Iterator[Finding]:
    train = case.config.train
    steps, every = train.steps, train.checkpoint_every
    if steps is not None and every > steps:
        text = f"no checkpoint before the last of {steps} steps: an interrupted run trains all of them again"
        yield warning("train.checkpoint_every", text)
    else:
        yield ok("train.checkpoint_every", f"an interrupted run trains {every - 1} steps again at most")
    if train.eval_every is not None and case.config.eval is None:
        yield warning("train.eval_every", "there is no [eval] section: nothing is ever measured")
    elif train.eval_every is None and case.config.eval is not None:
        yield warning("train.eval_every", "unset: the policy is measured before training, and not after it")
    if case.config.learner.num_minibatches > train.batch_size:
        text = f"{case.config.learner.num_minibatches} shares of {train.batch_size} prompts: as many updates as prompts"
        yield warning("learner.num_minibatches", text)
    stages = {f"sft.{number}.learner": stage.steps for number, stage in enumerate(case.config.sft)}
    for key, config in learners(case):
        yield from _schedule(f"{key}.schedule", config, stages.get(key, steps))


def _schedule(key: str, config: LearnerConfig, steps: int | None) -> Iterator[Finding]:
    schedule = config.schedule
    if steps is None:
        return
    if schedule.warmup_steps >= steps:
        text = f"{schedule.warmup_steps} steps of warm-up, and {steps} in all: the learning rate is never reached"
        yield warning(f"{key}.warmup_steps", text)
    if isinstance(schedule, CosineSchedule) and schedule.total_steps < steps and not schedule.min_ratio:
        text = f"the learning rate is 0 from step {schedule.total_steps} of {steps} on: nothing is learnt there"
        yield warning(f"{key}.total_steps", text)

"""The learning rate as a function of the step."""

import math

from learner.config import ConstantSchedule, CosineSchedule, ScheduleConfig


def learning_rate(config: ScheduleConfig, *, lr: float, step: int) -> float:
    """The rate of step `step`, from 0; the warm-up ends with the full rate at step `warmup_steps`.

    >>> [learning_rate(ConstantSchedule(warmup_steps=2), lr=3.0, step=s) for s in range(3)]
    [1.0, 2.0, 3.0]
    """
    if step < config.warmup_steps:
        return lr * (step + 1) / (config.warmup_steps + 1)
    match config:
        case ConstantSchedule():
            return lr
        case CosineSchedule(total_steps=total, warmup_steps=warmup, min_ratio=floor):
            done = min((step - warmup) / max(total - warmup, 1), 1.0)
            return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)

"""The mismatch gate: what to do where the weights that train and those that sampled disagree."""

import logging

from engine.errors import LearnerError
from engine.reports import Mismatch
from learner.config import MismatchGate

logger = logging.getLogger(__name__)


def judge(gate: MismatchGate, *, kl_rollout: float, step: int, speaks: bool) -> Mismatch:
    """`none` at or below the gate's limit, else what its action makes of it, said in the log by the rank that `speaks`.

    Raises `LearnerError` where the action is `stop`. With a limit of 0.1: 0.02 nats are `none`, 0.3 `warned`.
    """
    if kl_rollout <= gate.kl_limit:
        return "none"
    found = (
        f"step {step}: the weights that train and those that sampled are {kl_rollout:.3g} nats a token apart, "
        f"above learner.gate.kl_limit = {gate.kl_limit:g}"
    )
    if gate.action == "stop":
        raise LearnerError(f"{found}; nothing was applied")
    if speaks:
        logger.warning("%s", found)
    return "masked" if gate.action == "mask" else "warned"

"""The gradient: advantages, losses, and the Megatron-core learner.

`MegatronLearner` (in `learner.megatron`) takes a `Batch` of trees and gives back weights. Around it, one idea a file:

    config          every knob; algorithms have theirs in advantage_config, loss_config and correction_config
    training        the updates of a step             objective      what one row contributes
    statistics      what a step measures              forward        rows through the (pipelined) model
    optimizer       norm, clip, AdamW                 schedule       the learning rate
    parallel        processes and groups              meeting        where they find each other
    layout          what does not divide              sft            traces -> samples (numpy)
    mcore           the door to Megatron-core         mcore_cpu      Megatron without a GPU

    algorithms/     advantages, losses, corrections and rejections by name; rewards -> credit is numpy
    packing/        trees -> trajectories -> rows under a budget (numpy)
    network/        the GPT model itself, attention over trees, log-probabilities over a sharded vocabulary
    storage/        Hugging Face folders, published versions, checkpoints that re-shard

`MEGATRON_DOORS` names the only files that may import `megatron`: everything else takes its names from `learner.mcore`.
Importing `learner`, its configuration or what is marked numpy loads neither torch nor Megatron.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learner.algorithms.advantage import estimate
    from learner.algorithms.batch_credit import finish_batch
    from learner.config import LearnerConfig
    from learner.megatron import MegatronLearner

MEGATRON_DOORS = ("learner/mcore.py",)
"""The only files of the project in which `import megatron` may stand."""

_HOMES = {
    "LearnerConfig": "learner.config",
    "MegatronLearner": "learner.megatron",
    "estimate": "learner.algorithms.advantage",
    "finish_batch": "learner.algorithms.batch_credit",
}

__all__ = ["LearnerConfig", "MegatronLearner", "estimate", "finish_batch"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'learner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

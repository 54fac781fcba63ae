"""The gradient: advantages, losses, and the Megatron-core learner.

`MegatronLearner` (in `learner.megatron`) takes a `Batch` of trees and gives back weights. Around it, one idea a file:

    config      every knob                      advantage   rewards -> credit for each token (numpy)
    batcher     trees -> packed rows (numpy)    sft         traces -> samples (numpy)
    loss        the policy losses               correction  off-policy importance weights
    logprobs    over a sharded vocabulary       schedule    the learning rate
    hf_folder   folders of safetensors          weights     Hugging Face tensors <-> Megatron parameters
    checkpoint  whole or not at all             shards      its pieces, read in another layout
    layout      what does not divide            buckets     what is published in one file
    tensor_file safetensors as tensors come     shared_folder  written by all ranks together
    publisher   versions, and exports
    attention   layout -> attention, RoPE       pointwise   norm, SwiGLU, rotation, with gradients
    model       the GPT model itself
    parallel    processes and groups            forward     rows through the (pipelined) model
    objective   what one row contributes        hf_transfer weights between folder and model
    optimizer   norm, clip, AdamW               mcore_cpu   Megatron without a GPU

`MEGATRON_DOORS` names the only files that may import `megatron`: everything else takes its names from `learner.mcore`.
Importing `learner`, `learner.config`, `learner.advantage`, `learner.batcher` or `learner.sft` loads neither torch nor
Megatron.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learner.advantage import estimate
    from learner.config import LearnerConfig
    from learner.megatron import MegatronLearner

MEGATRON_DOORS = ("learner/mcore.py",)
"""The only files of the project in which `import megatron` may stand."""

_HOMES = {
    "LearnerConfig": "learner.config",
    "MegatronLearner": "learner.megatron",
    "estimate": "learner.advantage",
}

__all__ = ["LearnerConfig", "MegatronLearner", "estimate"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'learner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

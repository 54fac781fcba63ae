"""The gradient: advantages, losses, and the Megatron-core learner.

`MegatronLearner` (in `learner.megatron`) takes a `Batch` of trees and gives back weights. Around it, one idea a file:

    config          every knob; algorithms have theirs in advantage_config, loss_config and correction_config
    advantage       rewards -> credit (numpy)         batch_credit   what credit takes from a batch (numpy)
    overlong        what a long response loses        leaf_weights   by inverse branching (numpy)
    flatten         trees -> trajectories (numpy)     tree_pack      trajectories -> trees in rows (numpy)
    rows            what goes through at once (numpy) batcher        rows under a budget (numpy)
    loss            the policy losses                 regularisers   KL to a reference, entropy
    correction      off-policy weights, rejections    m2po           a rejection over a mini-batch (numpy)
    segments        sums over trajectories            logprobs       over a sharded vocabulary
    attention       layout -> attention, RoPE         pointwise      norm, SwiGLU, rotation, with gradients
    attention_chains, attention_cuda: the same attention where it is fast
    model           the GPT model itself              forward        rows through the (pipelined) model
    objective       what one row contributes          statistics     what a step measures
    training        the updates of a step             optimizer      norm, clip, AdamW
    parallel        processes and groups              layout         what does not divide
    schedule        the learning rate                 sft            traces -> samples (numpy)
    weights         HF tensors <-> Megatron's         hf_transfer    weights between folder and model
    hf_folder       folders of safetensors            buckets        what is published in one file
    checkpoint      whole or not at all               shards         its pieces, read in another layout
    tensor_file     safetensors as tensors come       shared_folder  written by all ranks together
    publisher       versions, and exports             mcore_cpu      Megatron without a GPU
    gate            where trainer and sampler disagree

`MEGATRON_DOORS` names the only files that may import `megatron`: everything else takes its names from `learner.mcore`.
Importing `learner`, its configuration or what is marked numpy loads neither torch nor Megatron.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learner.advantage import estimate
    from learner.batch_credit import finish_batch
    from learner.config import LearnerConfig
    from learner.megatron import MegatronLearner

MEGATRON_DOORS = ("learner/mcore.py",)
"""The only files of the project in which `import megatron` may stand."""

_HOMES = {
    "LearnerConfig": "learner.config",
    "MegatronLearner": "learner.megatron",
    "estimate": "learner.advantage",
    "finish_batch": "learner.batch_credit",
}

__all__ = ["LearnerConfig", "MegatronLearner", "estimate", "finish_batch"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'learner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""The door to Megatron-core: the one file that imports it, and the names the learner takes from it.

Importing Megatron without Transformer Engine and Apex warns about each of its fallbacks; they are the ones this
project means to use, so they are silenced here and nowhere else.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import random as rng
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

__all__ = [
    "ChainedOptimizer",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "GPTModel",
    "OptimizerConfig",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "finalize_model_grads",
    "get_forward_backward_func",
    "get_gpt_layer_local_spec",
    "get_megatron_optimizer",
    "no_megatron_warnings",
    "parallel_state",
    "rng",
    "tensor_parallel",
]


@contextmanager
def no_megatron_warnings() -> Iterator[None]:
    """Silence what Megatron says about its own defaults and its own calls, none of which are made here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"megatron\.")
        # raised in torch's own name for collectives that Megatron calls by their former names
        warnings.filterwarnings("ignore", message=r".torch\.distributed\..* is deprecated", category=FutureWarning)
        yield

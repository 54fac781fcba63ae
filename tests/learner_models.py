"""Models for a learner to train, batches to train them on, and what transformers makes of the same weights."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.types import (
    Batch,
    Node,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    Sample,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
)
from learner.algorithms.advantage import ArpoSoft, estimate
from learner.config import LearnerConfig
from learner.megatron import MegatronLearner

VOCAB = 131
"""Odd: the vocabulary is padded wherever it is shared."""
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
PLAIN = LearnerConfig(dtype="float32", micro_batch_tokens=128, lr=1e-2, weight_decay=0.0)


def make_model(folder: Path, kind: str = "qwen3", *, is_tied: bool = False, **changes: Any) -> PreTrainedModel:
    """A random model whose norms and biases matter, saved in Hugging Face form."""
    torch.manual_seed(7)
    sizes = SHAPE | ({"head_dim": 16} if kind == "qwen3" else {}) | changes
    config = AutoConfig.for_model(kind, tie_word_embeddings=is_tied, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.0 if parameter.ndim > 1 else 0.5, std=0.15)
    model.save_pretrained(folder)
    return model


def reference_logprobs(model: PreTrainedModel, token_ids: np.ndarray, *, temperature: float = 1.0) -> torch.Tensor:
    """[T - 1] log-probabilities of all tokens but the first."""
    ids = torch.from_numpy(token_ids.astype(np.int64))
    scores = (model(ids[None]).logits[0, :-1].float() / temperature).log_softmax(-1)
    return scores.gather(1, ids[1:, None]).squeeze(1)


def random_sample(rng: np.random.Generator, row: int) -> Sample:
    """Two leaves behind a tool result, one path of its own, and one that failed."""

    def node(parent: int, kind: NodeKind, length: int) -> Node:
        sampled = length if kind is NodeKind.SAMPLED else 0
        return Node(
            parent=parent,
            kind=kind,
            token_ids=rng.integers(0, VOCAB, length).astype(np.int32),
            logprobs=(-5 + rng.normal(0, 0.7, sampled)).astype(np.float32),
            versions=np.zeros(sampled, np.int32),
            entropies=np.zeros(sampled, np.float32),
        )

    prompt, sampled, observed = NodeKind.PROMPT, NodeKind.SAMPLED, NodeKind.OBSERVED
    nodes = (
        node(-1, prompt, int(rng.integers(2, 9))),
        node(0, sampled, 7),
        node(1, observed, 5),
        node(2, sampled, int(rng.integers(1, 30))),
        node(2, sampled, 3),
        node(0, sampled, 11),
        node(0, sampled, 4),
    )
    done, failed = RolloutStatus.COMPLETED, RolloutStatus.FAILED
    ends = ((3, done, 1.0), (4, done, 0.0), (5, done, 0.0), (6, failed, 1.0))
    group = TrajectoryGroup(
        prompt=Prompt(
            prompt_id=f"e0-r{row}", epoch=0, row=row, token_ids=nodes[0].token_ids, question="", ground_truth=""
        ),
        tree=TrajectoryTree(nodes=nodes),
        trajectories=tuple(
            Trajectory(path=i, leaf=leaf, status=status, reward=Reward(score=score))
            for i, (leaf, status, score) in enumerate(ends)
        ),
    )
    sample = estimate(group, ArpoSoft())
    assert sample is not None
    return sample


def random_batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(step=0, samples=tuple(random_sample(rng, row) for row in range(3)))


def exported(learner: MegatronLearner) -> dict[str, torch.Tensor]:
    return load_file(Path(learner.publish().path) / "model.safetensors")


@contextmanager
def learners(folder: Path, *, weights_root: Path) -> Iterator[Any]:
    """Yields a function that starts a learner on `folder`, one at a time; the last one is closed at the end."""
    living = ExitStack()

    def start(config: LearnerConfig = PLAIN, *, weights: str = "weights") -> MegatronLearner:
        living.close()
        return living.enter_context(MegatronLearner(config, model_path=folder, weights_dir=weights_root / weights))

    with living:
        yield start

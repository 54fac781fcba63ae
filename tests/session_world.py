"""A configuration that a session starts in seconds: a small random policy that likes to search, and some questions."""

import json
from pathlib import Path

import msgspec

from actors.config import Config, RunConfig
from engine.branching import Chain
from engine.dataset import DataConfig
from engine.rollout_config import BudgetConfig, RolloutConfig, SamplingConfig
from engine.train_config import TrainConfig
from learner.config import LearnerConfig
from tests.test_parity import build

QUESTIONS = ["who is it", "who is it one", "is it two", "who is one", "page one note", "note two"]


def small_config(folder: Path, *, steps: int = 2) -> Config:
    """Lives in `folder`, which need not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": q, "answer": "two"}) + "\n" for q in QUESTIONS]
    (folder / "questions.jsonl").write_text("".join(rows))
    return msgspec.structs.replace(
        build(folder, "qwen3"),
        run=RunConfig(dir=str(folder / "runs")),
        data=DataConfig(path=str(folder / "questions.jsonl"), epochs=8, prompt_column="prompt", answer_column="answer"),
        rollout=RolloutConfig(
            size=4,
            branching=Chain(),
            sampling=SamplingConfig(max_response_tokens=48, max_segment_tokens=12),
            budget=BudgetConfig(calls_per_path=2),
        ),
        learner=LearnerConfig(dtype="float32", lr=1e-3, micro_batch_tokens=1024),
        train=TrainConfig(steps=steps, batch_size=2, checkpoint_every=1),
    )

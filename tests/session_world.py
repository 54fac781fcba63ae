"""A configuration that a session starts in seconds: a small random policy that likes to search, and some questions."""

import json
from pathlib import Path

from actors.config import Config
from tests.test_parity import build

QUESTIONS = ["who is it", "who is it one", "is it two", "who is one", "page one note", "note two"]
TOML = """
[run]
dir = "{folder}/runs"
[model]
kind = "hf"
path = "{folder}/model"
[data]
path = "{folder}/questions.jsonl"
epochs = 8
prompt_column = "prompt"
answer_column = "answer"
[tools.search]
corpus = "{folder}/corpus.jsonl"
top_k = 1
[rollout]
size = 4
[rollout.branching]
kind = "chain"
[rollout.sampling]
max_response_tokens = 48
max_segment_tokens = 12
[rollout.budget]
calls_per_path = 2
[learner]
dtype = "float32"
lr = 1e-3
micro_batch_tokens = 1024
[train]
steps = {steps}
batch_size = 2
checkpoint_every = 1
"""


def small_config(folder: Path, *, steps: int = 2) -> Config:
    """All of it lives in `folder`, which need not exist; as `folder/small.toml`, too."""
    folder.mkdir(parents=True, exist_ok=True)
    build(folder, "qwen3")
    rows = [json.dumps({"prompt": question, "answer": "two"}) + "\n" for question in QUESTIONS]
    (folder / "questions.jsonl").write_text("".join(rows))
    (folder / "small.toml").write_text(TOML.format(folder=folder, steps=steps))
    return Config.load(folder / "small.toml")

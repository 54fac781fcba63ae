"""The same step by plain `transformers` and torch: padded batches of whole trajectories, autograd, fused AdamW."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from actors.bench.bench import Record
from engine.types import Batch
from learner.packing.flatten import FlatSequence, flatten


def train(batch: Batch, *, model_path: Path, micro_batch_tokens: int, lr: float, rounds: int) -> Record:
    """Decoupled policy-gradient steps on the batch's trajectories, sorted by length so that little is padding."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    sequences = sorted(flatten(batch), key=lambda s: len(s.token_ids))
    size = max(micro_batch_tokens // len(sequences[-1].token_ids), 1)
    parts = [sequences[start : start + size] for start in range(0, len(sequences), size)]
    num_trained = sum(s.num_trained for s in sequences)
    seconds: list[float] = []
    for _ in range(rounds + 1):
        started_s = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        for part in parts:
            (_loss(model, part) / num_trained).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.monotonic() - started_s)
    step_s = median(seconds[1:])
    num_tokens = sum(len(s.token_ids) for s in sequences)
    return {"step_s": step_s, "path_tokens_per_s": num_tokens / step_s}


def _loss(model: Any, part: Sequence[FlatSequence]) -> torch.Tensor:
    """Sum over trained tokens of -w r A, with w = p / b and r = th / sg(th)."""
    longest = max(len(s.token_ids) for s in part)

    def rows(name: str, dtype: type) -> torch.Tensor:
        made = np.zeros((len(part), longest), dtype)
        for row, sequence in zip(made, part, strict=True):
            values = getattr(sequence, name)
            row[: len(values)] = values
        return torch.from_numpy(made)

    ids, is_trained = rows("token_ids", np.int64), rows("is_trained", np.bool_)[:, 1:]
    logits = model(input_ids=ids, attention_mask=_is_token(part, longest)).logits[:, :-1]
    scores = torch.log_softmax(logits[is_trained].float(), dim=-1)
    now = scores.gather(1, ids[:, 1:][is_trained][:, None]).squeeze(1)
    behaviour, advantages = (rows(n, np.float32)[:, 1:][is_trained] for n in ("behaviour", "advantages"))
    weights = (now.detach() - behaviour).exp()
    return -(weights * (now - now.detach()).exp() * advantages).sum()


def _is_token(part: Sequence[FlatSequence], longest: int) -> torch.Tensor:
    lengths = torch.tensor([len(s.token_ids) for s in part])
    return (torch.arange(longest)[None] < lengths[:, None]).long()

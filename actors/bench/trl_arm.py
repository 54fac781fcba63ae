"""TRL's side of `arpo bench end-to-end`, in a process of its own: `python -m actors.bench.trl_arm TASK TOLD`.

TASK is a file with the `Task`, TOLD one for the answer. Where TRL has a faster way than its defaults it is taken: no
recomputed activations, one forward pass for all completions of a step, nothing logged, no checkpoints.
"""

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import torch

from actors.bench.end_to_end_task import Task, Told, reward_of


def main(task: Task, *, scratch: Path) -> Told:
    """Train as TRL does: sample, step, sample, step."""
    # What no type checker sees: two of them lie in the folder that `trl_install` makes.
    datasets: Any = import_module("datasets")
    transformers: Any = import_module("transformers")
    trl: Any = import_module("trl")
    torch.set_num_threads(task.threads)
    ends_s: list[float] = []
    lengths: list[int] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends_s.append(time.monotonic())

    def reward(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [reward_of(completion[0]["content"]) for completion in completions]

    num_completions = task.num_prompts * task.num_completions
    config = trl.GRPOConfig(
        output_dir=str(scratch),
        max_steps=task.steps,
        per_device_train_batch_size=num_completions,
        gradient_accumulation_steps=1,
        num_generations=task.num_completions,
        max_completion_length=task.max_tokens,
        temperature=task.temperature,
        top_k=0,
        beta=0.0,
        epsilon=task.clip,
        learning_rate=task.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=task.grad_clip,
        optim="adamw_torch_fused",
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )
    trainer = trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(task.model_path, dtype=torch.float32),
        processing_class=transformers.AutoTokenizer.from_pretrained(task.model_path),
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.Dataset.from_list([{"prompt": messages} for messages in task.prompts]),
        callbacks=[Clock()],
    )
    trainer.train()
    return Told(ends_s=tuple(ends_s), tokens=sum(lengths) / len(lengths))


if __name__ == "__main__":
    given, answer = Path(sys.argv[1]), Path(sys.argv[2])
    told = main(msgspec.json.decode(given.read_bytes(), type=Task), scratch=answer.parent / "trl")
    answer.write_bytes(msgspec.json.encode(told))

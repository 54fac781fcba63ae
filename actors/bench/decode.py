"""Decoding, ours against `transformers.generate`: same model, same prompts, same lengths, KV cache on, both sampling.

Each arm builds its engine anew, warms it up on other prompts, and times one batch from the submission of the first
prompt to the last token. The embedded arm runs the public generator with its event loop, and returns log-probabilities,
exact entropies and versions; the transformers arm returns tokens only.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from engine.inference.tiny import make_tiny_model
from engine.types import GenerateRequest, Int32, SamplingParams

ArmName = Literal["embedded", "transformers"]
_WARM_UP_TOKENS = 8


def make_bench_model(path: str | Path) -> str:
    """A Qwen3 of 4 layers, hidden size 128 and 1,024 tokens (0.92 M parameters) with random weights; returns `path`."""
    make_tiny_model(path, kind="qwen3", vocab_size=1024, hidden_size=128, num_layers=4, init_std=0.05)
    return str(path)


def make_bench_prompts(*, count: int = 32, length: int = 32, vocab_size: int = 1024, seed: int = 0) -> list[Int32]:
    """`count` prompts of random tokens that share no prefix, so that no cache helps."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return list(generator.integers(0, vocab_size, (count, length), dtype=np.int32))


def run_arm(
    name: ArmName, *, model_path: str, prompts: Sequence[Int32], max_new_tokens: int, seed: int
) -> dict[str, float]:
    """Decode one batch; `prompts` have one length.

    Returns `tokens_per_s` (sampled tokens over wall time, prefill included), `wall_s`, `cpu_s` (of this process),
    `num_tokens` and `ms_per_step` (wall time over `max_new_tokens`).
    """
    run = {"embedded": _run_embedded, "transformers": _run_transformers}[name]
    num_tokens, wall_s, cpu_s = run(model_path, prompts, max_new_tokens, seed)
    return {
        "tokens_per_s": num_tokens / wall_s,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "num_tokens": float(num_tokens),
        "ms_per_step": 1000.0 * wall_s / max_new_tokens,
    }


def _run_embedded(
    model_path: str, prompts: Sequence[Int32], max_new_tokens: int, seed: int
) -> tuple[int, float, float]:
    return asyncio.run(_decode_embedded(model_path, prompts, max_new_tokens, seed))


async def _decode_embedded(
    model_path: str, prompts: Sequence[Int32], max_new_tokens: int, seed: int
) -> tuple[int, float, float]:
    from engine.inference.embedded import EmbeddedConfig, EmbeddedGenerator

    # Every sequence fits, and all prompts are prefilled in one step, as transformers does it.
    length = prompts[0].size
    config = EmbeddedConfig(
        max_kv_tokens=2 * len(prompts) * (length + max_new_tokens) + 64,
        max_running=len(prompts),
        prefill_chunk=len(prompts) * length,
        device="cpu",
    )
    async with EmbeddedGenerator(config, model_path=model_path) as generator:

        async def one(prompt: Int32, index: int, num_new: int) -> int:
            sampling = SamplingParams(max_new_tokens=num_new, seed=seed + index)
            request = GenerateRequest(request_id=f"{num_new}-{index}", token_ids=prompt, sampling=sampling)
            return sum([chunk.token_ids.size async for chunk in generator.generate(request)])

        warm_up = [one((prompt + 1) % 1000, index, _WARM_UP_TOKENS) for index, prompt in enumerate(prompts)]
        await asyncio.gather(*warm_up)
        wall, cpu = time.perf_counter(), time.process_time()
        counts = await asyncio.gather(*(one(prompt, i, max_new_tokens) for i, prompt in enumerate(prompts)))
        return sum(counts), time.perf_counter() - wall, time.process_time() - cpu


def _run_transformers(
    model_path: str, prompts: Sequence[Int32], max_new_tokens: int, seed: int
) -> tuple[int, float, float]:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    batch = torch.from_numpy(np.stack(prompts).astype(np.int64))

    def generate(ids: torch.Tensor, num_new: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,  # the default of 50 would cost it a sort a step
            use_cache=True,
            max_new_tokens=num_new,
            pad_token_id=0,
        )
        return int(out.shape[0] * (out.shape[1] - ids.shape[1]))

    generate((batch + 1) % 1000, _WARM_UP_TOKENS)
    wall, cpu = time.perf_counter(), time.process_time()
    num_tokens = generate(batch, max_new_tokens)
    return num_tokens, time.perf_counter() - wall, time.process_time() - cpu

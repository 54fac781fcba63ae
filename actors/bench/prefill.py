"""Prefill: what the embedded engine computes of a prompt, a fork and a tool turn, against what is new in them.

A request has something new in it where no request before it was fed that token, and the token whose logits are asked
for is always computed. So a fork at a streamed position needs one token, and a tool turn the tool's tokens and the last
sampled one, which nobody was fed.
"""

import asyncio
import contextlib

import numpy as np

from actors.bench.bench import Record
from engine.interfaces import Generator
from engine.types import Completion, GenerateRequest, Int32, SamplingParams

PROMPT_TOKENS, SEGMENT_TOKENS, TOOL_TOKENS = 200, 192, 37
CHUNK_TOKENS = 8
FORK_AT = 19
"""Sampled tokens the branch inherits; inside a chunk, and while the parent still streams."""


def count_prefill(*, model_path: str, seed: int) -> Record:
    """Prompt, fork under way, tool turns of parent and child: tokens computed and needed, and their difference."""
    return asyncio.run(_count(model_path, seed))


async def _count(model_path: str, seed: int) -> Record:
    from engine.inference.embedded import EmbeddedConfig, EmbeddedGenerator

    randoms = np.random.Generator(np.random.PCG64(seed))
    prompt, tool = (randoms.integers(0, 1000, size, dtype=np.int32) for size in (PROMPT_TOKENS, TOOL_TOKENS))
    async with EmbeddedGenerator(EmbeddedConfig(device="cpu"), model_path=model_path) as generator:
        async with contextlib.aclosing(generator.generate(_request("parent", prompt, seed))) as stream:
            chunks: list[Completion] = []
            async for chunk in stream:
                chunks.append(chunk)
                if sum(c.token_ids.size for c in chunks) >= FORK_AT:
                    break
            inherited = np.concatenate([prompt, *[c.token_ids for c in chunks]])[: prompt.size + FORK_AT]
            forking = asyncio.create_task(_segment(generator, _request("child", inherited, seed + 1)), name="child")
            chunks += [chunk async for chunk in stream]
        child = await forking
        tips = [np.concatenate([prompt, *[c.token_ids for c in chunks]])]
        tips.append(np.concatenate([inherited, *[c.token_ids for c in child]]))
        turns = [
            await _segment(generator, _request(f"turn-{number}", np.concatenate([tip, tool]), seed + 2 + number))
            for number, tip in enumerate(tips)
        ]
    computed = {
        "prompt": _prefilled(chunks),
        "fork": _prefilled(child),
        "turns": sum(_prefilled(turn) for turn in turns),
    }
    needed = {"prompt": PROMPT_TOKENS, "fork": 1, "turns": 2 * (TOOL_TOKENS + 1)}
    return {
        **{f"{name}_computed": float(count) for name, count in computed.items()},
        **{f"{name}_needed": float(count) for name, count in needed.items()},
        "excess": float(sum(computed.values()) - sum(needed.values())),
    }


def _request(name: str, token_ids: Int32, seed: int) -> GenerateRequest:
    sampling = SamplingParams(max_new_tokens=SEGMENT_TOKENS, seed=seed)
    return GenerateRequest(request_id=name, token_ids=token_ids, sampling=sampling, stream_interval=CHUNK_TOKENS)


async def _segment(generator: Generator, request: GenerateRequest) -> list[Completion]:
    return [chunk async for chunk in generator.generate(request)]


def _prefilled(chunks: list[Completion]) -> int:
    return sum(chunk.num_prefilled_tokens for chunk in chunks)

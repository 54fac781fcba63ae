"""The world of the toy policy: a renderer, tools and a generator, by which the engine grows real trees of it."""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence

import msgspec
import numpy as np

from engine.coins import coin
from engine.reports import GeneratorStatistics
from engine.types import (
    Completion,
    Float64,
    GenerateRequest,
    Int32,
    Reward,
    ToolCall,
    ToolResult,
    UpdateMode,
    WeightRef,
)
from tests.toy_policy import PROMPT, STOP, result_of, score, state_of
from tools.faults import ScriptedTools


class ToyRenderer:
    """Tokens as numbers."""

    stop_strings: tuple[str, ...] = ()
    stop_token_ids = (STOP,)

    def render_prompt(self, messages: Sequence[dict[str, str]]) -> Int32:
        return np.array([PROMPT], np.int32)

    def parse(self, token_ids: Sequence[int] | Int32) -> tuple[ToolCall, ...]:
        calls = token_ids[-1] == STOP
        return (ToolCall(name="look", arguments={"query": self.text(token_ids)}),) if calls else ()

    def render_results(self, results: Sequence[ToolResult], *, segment: Sequence[int] | Int32) -> Int32:
        return np.array([int(result.text) for result in results], np.int32)

    def text(self, token_ids: Sequence[int] | Int32) -> str:
        return " ".join(str(int(token)) for token in token_ids)


def toy_tools() -> ScriptedTools:
    """Results and rewards; the more was said, the longer a call takes, so that trees depend on timing."""

    def numbers(call: ToolCall) -> list[int]:
        return [int(word) for word in call.arguments["query" if call.name == "look" else "text"].split()]

    return ScriptedTools(
        {
            "look": lambda call: str(result_of(numbers(call))),
            "reward": lambda call: msgspec.json.encode(Reward(score=score(numbers(call)))).decode(),
        },
        latency_s=lambda call: 0.7 * len(numbers(call)) if call.name == "look" else 0.0,
    )


class ToyGenerator:
    """Samples from one table a version, a second a token; every number it stamps is exact."""

    def __init__(self, tables: Sequence[Float64]) -> None:
        """`tables` by version; it begins with version 0."""
        logprobs = [table - np.logaddexp.reduce(table, axis=-1, keepdims=True) for table in tables]
        self._logprobs = [values.tolist() for values in logprobs]
        self._entropies = [(-np.exp(values) * values).sum(-1).tolist() for values in logprobs]
        self._version = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """See `interfaces.Generator.generate`. Each token is drawn by a coin of its own, by the version of its time."""
        state, position = state_of(request.token_ids), int(request.token_ids.size)
        while not state.is_over:
            tokens: list[int] = []
            logprobs: list[float] = []
            entropies: list[float] = []
            versions: list[int] = []
            while len(tokens) < request.stream_interval and not state.is_over:
                await asyncio.sleep(1.0)
                choices = self._logprobs[self._version][state.row]
                token = _drawn(choices, coin(request.sampling.seed, position))
                tokens.append(token)
                logprobs.append(choices[token])
                entropies.append(self._entropies[self._version][state.row])
                versions.append(self._version)
                state, position = state.then(token), position + 1
            yield Completion(
                request_id=request.request_id,
                token_ids=np.array(tokens, np.int32),
                logprobs=np.array(logprobs, np.float32),
                entropy_low=np.array(entropies, np.float32),
                entropy_high=np.array(entropies, np.float32),
                versions=np.array(versions, np.int32),
                finish_reason="stop" if state.is_over else "",
            )

    async def abort(self, request_id: str) -> None:
        """Nothing is aborted here."""

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        self._version = ref.version

    async def statistics(self) -> GeneratorStatistics:
        return GeneratorStatistics(version=self._version, num_requests=0, num_running=0, num_sampled_tokens=0)


def _drawn(logprobs: list[float], uniform: float) -> int:
    for token, value in enumerate(logprobs):
        uniform -= math.exp(value)
        if uniform < 0:
            return token
    return len(logprobs) - 1

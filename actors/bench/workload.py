"""Workload: tool-using rollouts by law, for control flows that run against each other on virtual time.

What a path does next is a function of (run seed, prompt, number of the path in its tree, tool results seen so far), so
the same path does the same thing under any control flow. A segment has a lognormal number of tokens, at a constant time
a token in one of a fixed number of slots; it ends in a call or in the answer, so that a path makes 1 to `max_calls`
calls with equal probability; a call takes a lognormal time with a heavy tail, in one of a fixed number of workers.
Slots and workers serve by precedence, and where all have the same in the order of arrival. Prefill, rewards and the
network take no time, and all entropies are 0.
"""

import asyncio
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np

from engine.coins import coin, seed_of
from engine.config import NonNegativeFloat, Positive, PositiveFloat, Section
from engine.inference.scripted import Script, ScriptedGenerator
from engine.renderer import Renderer, RendererConfig, make_renderer
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.types import GenerateRequest, Prompt, Reward
from tools.executor import Executor
from tools.schema import tool

NUM_WORDS = 1000
QUERY_WORDS = 3
MIN_SEGMENT_TOKENS = 8
"""Room for a call or an answer, and a word before it."""


class Law(Section, frozen=True):
    """Sizes and distributions."""

    num_prompts: Positive = 64
    num_slots: Positive = 64
    """Requests the policy serves at once."""
    token_s: PositiveFloat = 0.005
    segment_median: PositiveFloat = 60.0
    """Tokens."""
    segment_sigma: NonNegativeFloat = 0.6
    max_calls: Positive = 4
    num_workers: Positive = 64
    """Tool calls that run at once."""
    latency_median_s: PositiveFloat = 0.3
    """Of a tool."""
    latency_sigma: NonNegativeFloat = 1.2
    latency_max_s: PositiveFloat = 20.0


class Workload:
    """One law with one seed: the scripted neighbours of a control flow."""

    def __init__(self, law: Law, *, seed: int, folder: Path, is_watched: bool = False) -> None:
        """`folder` gets the tokenizer, once. Only what is watched knows what was `occupied`."""
        self.law = law
        self.seed = seed
        words = [f"w{number}" for number in range(NUM_WORDS)]
        if not (folder / "tokenizer.json").exists():
            make_word_tokenizer(folder, words=words)
        self._tokenizer = load_tokenizer(folder)
        self._words = self._tokenizer.encode(" ".join(words))
        self._search, self._search_end, self.result_end = self._tokenizer.encode("<search> </search> </result>")
        self.occupied: dict[str, list[tuple[float, float]]] = {"slots": [], "workers": []}
        """When each service of a slot or a worker began and ended."""
        self._is_watched = is_watched
        self.answer = [*self._tokenizer.encode("<answer> w0 </answer>"), self._tokenizer.eos_token_ids[0]]

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def prompts(self) -> list[Prompt]:
        """Equal questions with names of their own."""
        ids = np.array(self._words[:4], np.int32)
        return [
            Prompt(prompt_id=f"e0-r{row:03d}", epoch=0, row=row, token_ids=ids, question="", ground_truth="")
            for row in range(self.law.num_prompts)
        ]

    def generator(self) -> ScriptedGenerator:
        """A policy that says what the law says."""

        def served(request: GenerateRequest) -> Script:
            script = self.script(request)
            self._occupy("slots", len(script.token_ids) * script.token_s)
            return script

        return ScriptedGenerator(served, num_slots=self.law.num_slots)

    def script(self, request: GenerateRequest) -> Script:
        """The segment of a path (its sampling seed) after so many results (counted in its tokens)."""
        turn = int(np.count_nonzero(request.token_ids == self.result_end))
        where = (request.sampling.seed, turn)
        size = max(self._lognormal(self.law.segment_median, self.law.segment_sigma, *where), MIN_SEGMENT_TOKENS)
        # The hazard of a number of calls that is uniform on 1 .. max_calls.
        left = self.law.max_calls - turn
        is_call = turn == 0 or coin(*where, "call") < left / (left + 1)
        end = self.call(*where) if is_call else self.answer
        body = [self._words[0]] * (round(size) - len(end))
        return Script(token_ids=[*body, *end], token_s=self.law.token_s)

    def call(self, path_seed: int, turn: int) -> list[int]:
        """The tokens of the call that a path makes after so many results: words of its own, which decide its time."""
        words = [self._words[seed_of(path_seed, turn, "query", i) % NUM_WORDS] for i in range(QUERY_WORDS)]
        return [self._search, *words, self._search_end]

    def latency_s(self, query: str) -> float:
        """Seconds a call takes; the query holds words drawn for the path and turn that ask."""
        drawn = self._lognormal(self.law.latency_median_s, self.law.latency_sigma, self.seed, query, "latency")
        return min(drawn, self.law.latency_max_s)

    def tools(self) -> Executor:
        """The engine's own executor, with a search tool that takes the law's time and a reward that takes none."""

        @tool(timeout_s=2 * self.law.latency_max_s, max_concurrency=self.law.num_workers)
        async def search(query: str) -> str:
            """Wait for as long as the law says."""
            latency_s = self.latency_s(query)
            self._occupy("workers", latency_s)
            await asyncio.sleep(latency_s)
            return "w0"

        @tool(max_concurrency=self.law.num_prompts, visible=False, inline=True)
        def reward(text: str, ground_truth: str, tools_run: tuple[str, ...] = ()) -> Reward:
            """Everything is worth the same."""
            return Reward(score=1.0)

        return Executor([search, reward])

    def renderer(self, tools: Executor) -> Renderer:
        return make_renderer(RendererConfig(), tokenizer=self._tokenizer, specs=tools.specs)

    def _occupy(self, what: str, seconds: float) -> None:
        if self._is_watched:
            now = asyncio.get_running_loop().time()
            self.occupied[what].append((now, now + seconds))

    @staticmethod
    def _lognormal(median: float, sigma: float, seed: int, *names: str | int) -> float:
        uniform = max(coin(seed, *names, "lognormal"), 1e-12)
        return median * math.exp(sigma * NormalDist().inv_cdf(uniform))

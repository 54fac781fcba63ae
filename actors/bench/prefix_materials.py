"""What the rollouts of `prefix_rollouts` are made of: two random models that like to search, a corpus, questions.

The models are those of two seeds, chosen because their random talk ends a segment with a call more often than with an
end: paths make about three turns. Lengths are those of a small agent: 270 tokens of prompt, 20 to 40 sampled tokens and
130 of a result a turn, k = 20 as in the paper, forks with even odds behind every result.
"""

import json
from pathlib import Path
from random import Random

import msgspec

from actors.config import Config, GeneratorConfig, HfModel, RuntimeConfig
from engine.branching import Uniform
from engine.dataset import DataConfig
from engine.inference.tiny import make_tiny_model
from engine.rollout_config import RolloutConfig, SamplingConfig
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from tools.config import SearchConfig, ToolsConfig

SYSTEM = "look it up with <search> words </search> and answer"
SEEDS = (13, 21)
"""Of the models before and behind the update."""
NUM_WORDS = 24
NUM_PASSAGES = 64
MAX_POSITIONS = 4096


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is grown, by how many."""

    num_trees: int
    paths: int = 16
    """M."""
    initial: int = 8
    """N."""
    num_generators: int = 2
    probe_tokens: int = 20
    """k."""
    question_words: int = 250
    passage_words: int = 120
    max_response_tokens: int = 2048

    @property
    def max_kv_tokens(self) -> int:
        """Of a server: room for all paths of all trees at their longest, even where no two share a token, so that
        nothing is evicted."""
        return self.num_trees * self.paths * (2 * self.question_words + self.max_response_tokens)


class Materials:
    """Models, corpus and questions of one size; made in `folder`."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.size = size
        self._words = [f"w{number}" for number in range(NUM_WORDS)]
        self.models = [self._model(folder / f"model-{seed}", seed=seed) for seed in SEEDS]
        self._corpus = folder / "corpus.jsonl"
        draw = Random(0)
        passages = [" ".join(draw.choices(self._words, k=size.passage_words)) for _ in range(NUM_PASSAGES)]
        self._corpus.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages), encoding="utf-8")

    def question(self, draw: Random) -> list[dict[str, str]]:
        """A conversation that asks something; all begin alike."""
        words = " ".join(draw.choices(self._words, k=self.size.question_words))
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": words}]

    def config(self, generator: GeneratorConfig) -> Config:
        size = self.size
        return Config(
            model=HfModel(path=self.models[0]),
            data=DataConfig(path=""),
            tools=ToolsConfig(search=SearchConfig(corpus=str(self._corpus), top_k=1)),
            generator=generator,
            runtime=RuntimeConfig(num_generators=size.num_generators),
            rollout=RolloutConfig(
                size=size.paths,
                branching=Uniform(initial=size.initial, probe_tokens=size.probe_tokens, rate=0.5),
                sampling=SamplingConfig(
                    max_response_tokens=size.max_response_tokens, max_segment_tokens=256, max_turns=8
                ),
            ),
        )

    def _model(self, folder: Path, *, seed: int) -> str:
        make_word_tokenizer(folder, words=self._words)
        tokenizer = load_tokenizer(folder)
        make_tiny_model(
            folder,
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            intermediate_size=64,
            init_std=0.25,
            max_positions=MAX_POSITIONS,
            eos_token_ids=tokenizer.eos_token_ids,
            seed=seed,
        )
        return str(folder)

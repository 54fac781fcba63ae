"""Parity: what samples, the learner that trains and the reference agree on every token of real trees.

The trees are multi-turn, with results of real tools in them and branches that inherit prefixes through the radix
cache; each log-probability that the embedded engine or a real SGLang server stamped is scored again by the learner and
by transformers.
"""

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from actors.config import Config, GeneratorConfig, HfModel
from actors.remote import RemoteTrainer
from actors.runtime import LocalRuntime
from engine.branching import Uniform
from engine.budget import Account
from engine.cohort import Cohort
from engine.dataset import DataConfig
from engine.granting import Paper
from engine.inference.embedded import EmbeddedConfig
from engine.inference.router import Router
from engine.inference.sglang_config import SglangConfig
from engine.inference.shape import ModelKind
from engine.inference.tiny import make_tiny_model
from engine.rollout_config import BudgetConfig, RolloutConfig, SamplingConfig
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.tree import TreeBuilder
from engine.types import (
    Batch,
    Float32,
    Float64,
    GenerateRequest,
    Int32,
    NodeKind,
    Prompt,
    Sample,
    SamplingParams,
    TrajectoryGroup,
)
from learner.config import LearnerConfig
from tools.config import SearchConfig, ToolsConfig

LEARNER_TO_ENGINE = 1e-4
LEARNER_TO_REFERENCE = 2e-5
"""Rounding of float32 alone: the largest of thousands of draws, up to 1.3e-5 here, and another one on each machine, as
the trees are. A position or a key that is wrong shows as more than 1e-2."""
WORDS = ["who", "is", "it", "page", "one", "two", "three", "Page", "1:", "2:", "note"]
ROLLOUT = RolloutConfig(
    size=8,
    branching=Uniform(initial=3, probe_tokens=3, rate=1.0),
    sampling=SamplingConfig(max_response_tokens=160, max_segment_tokens=40),
    budget=BudgetConfig(calls_per_path=None),
)


EMBEDDED = EmbeddedConfig()
SGLANG = SglangConfig(python=str(Path(__file__).parent.parent / ".venv-sglang" / "bin" / "python"), max_kv_tokens=16384)


class Gap(NamedTuple):
    """Largest differences found over all tokens of a set of trees."""

    to_engine: float
    to_reference: float
    num_tokens: int
    num_sampled: int


def build(folder: Path, kind: ModelKind, *, generator: GeneratorConfig = EMBEDDED) -> Config:
    """A peaked model over a small vocabulary, whose random talk is full of tool calls, and a corpus to call."""
    model = folder / "model"
    model.mkdir()
    make_word_tokenizer(model, words=WORDS)
    tokenizer = load_tokenizer(model)
    # SGLang takes the width of a Qwen2 head from hidden size and heads, as it is in all that were published.
    is_narrow = kind == "qwen2" and isinstance(generator, SglangConfig)
    make_tiny_model(
        model,
        kind=kind,
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=2 if is_narrow else 4,
        num_kv_heads=1 if is_narrow else 2,
        head_dim=16,
        intermediate_size=64,
        init_std=0.25,
        max_positions=512,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"{word} is page note {word}"}) + "\n" for word in WORDS))
    return Config(
        model=HfModel(path=str(model)),
        data=DataConfig(path=""),
        tools=ToolsConfig(search=SearchConfig(corpus=str(corpus), top_k=1)),
        rollout=ROLLOUT,
        generator=generator,
    )


async def grow(runtime: LocalRuntime, router: Router, *, row: int) -> TrajectoryGroup:
    prompt = Prompt(
        prompt_id=f"e0-r{row}",
        epoch=0,
        row=row,
        token_ids=runtime.renderer.render_prompt([{"role": "user", "content": "who is it"}]),
        question="who is it",
        ground_truth="one",
    )
    run = Account("run")
    # In logical order, so that what the trees hold does not depend on how busy the machine is.
    cohort = Cohort(row, size=1, granting=Paper(), leaves=run, tool_calls=run, is_logical=True)
    rollout = runtime.rollouts(router, config=ROLLOUT, seed=3, emit=lambda event: None)
    return await rollout(TreeBuilder(prompt), cohort)


def behaviour(group: TrajectoryGroup, leaf: int) -> tuple[Int32, Float32]:
    """The tokens of a trajectory and what the engine said of them; NaN where nobody sampled."""
    nodes = [group.tree.nodes[i] for i in group.tree.path_to(leaf)]
    said = [n.logprobs if n.kind is NodeKind.SAMPLED else np.full(n.token_ids.size, np.nan, np.float32) for n in nodes]
    return group.tree.token_ids(leaf), np.concatenate(said)


def reference(model_path: str, sequences: list[Int32]) -> list[Float64]:
    """Log-probabilities by transformers in double precision, so that a difference is the learner's error alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64, attn_implementation="eager")
    results: list[Float64] = []
    with torch.no_grad():
        for ids in sequences:
            tokens = torch.tensor(ids.astype(np.int64))[None]
            logprobs = torch.log_softmax(model(tokens).logits[0], dim=-1)
            picked = logprobs[:-1].gather(1, tokens[0, 1:, None])[:, 0]
            results.append(np.concatenate([np.zeros(1), picked.numpy()]))
    return results


async def compare(groups: list[TrajectoryGroup], trainer: RemoteTrainer, *, model_path: str) -> Gap:
    leaves = [behaviour(group, t.leaf) for group in groups for t in group.trajectories]
    sequences = [ids for ids, _ in leaves]
    scored = await trainer.logprobs(sequences)
    expected = await asyncio.to_thread(reference, model_path, sequences)
    to_engine = max(float(np.nanmax(np.abs(ours - said))) for ours, (_, said) in zip(scored, leaves, strict=True))
    to_reference = max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(scored, expected, strict=True))
    num_sampled = sum(int((~np.isnan(said)).sum()) for _, said in leaves)
    return Gap(to_engine, to_reference, sum(ids.size for ids in sequences), num_sampled)


def check_trees(groups: list[TrajectoryGroup], *, version: int) -> None:
    """The trees are what this file claims: branched, multi-turn, with observations, all of one version."""
    turns = [
        sum(group.tree.nodes[i].kind is NodeKind.OBSERVED for i in group.tree.path_to(t.leaf))
        for group in groups
        for t in group.trajectories
    ]
    assert max(turns) >= 2, turns
    assert sum(group.num_tool_calls_executed for group in groups) > 0, "some results are those of a real tool"
    assert sum(group.num_forks for group in groups) >= 4
    assert all(group.num_tokens_cached > 0 for group in groups)
    sampled = [node for group in groups for node in group.tree.nodes if node.kind is NodeKind.SAMPLED]
    assert {int(v) for node in sampled for v in node.versions} == {version}


def sample_of(group: TrajectoryGroup) -> Sample:
    """Half of the trajectories are to become more likely, the others less."""
    advantages: list[Float32] = []
    for number, trajectory in enumerate(group.trajectories):
        said = behaviour(group, trajectory.leaf)[1]
        advantages.append(np.where(np.isnan(said), 0.0, 1.0 - 2.0 * (number % 2)).astype(np.float32))
    return Sample(group=group, advantages=tuple(advantages))


async def measure(
    folder: Path,
    *,
    kind: ModelKind,
    tensor_parallel: int = 1,
    generator: GeneratorConfig = EMBEDDED,
    num_trees: int = 3,
) -> tuple[Gap, Gap]:
    """Gaps before and after an optimiser step whose weights were published to the generator."""
    config = build(folder, kind, generator=generator)
    settings = LearnerConfig(dtype="float32", lr=1e-2, tensor_parallel=tensor_parallel, micro_batch_tokens=512)
    async with LocalRuntime(config, folder / "run") as runtime:
        router = await runtime.start_generators(runtime.model_path)
        async with runtime.learner(config=settings, model_path=runtime.model_path) as trainer:
            groups = [await grow(runtime, router, row=row) for row in range(num_trees)]
            check_trees(groups, version=0)
            before = await compare(groups, trainer, model_path=runtime.model_path)

            report = await trainer.step(Batch(step=1, samples=tuple(sample_of(group) for group in groups)))
            assert report.grad_norm > 0
            assert report.kl_rollout < 1e-8
            ref = await trainer.publish()
            for generator in runtime.generators:
                await generator.update_weights(ref, mode="retract")
            groups = [await grow(runtime, router, row=row) for row in range(num_trees, 2 * num_trees)]
            check_trees(groups, version=1)
            await trainer.export_hf(str(folder / "after"))
            after = await compare(groups, trainer, model_path=str(folder / "after"))
            old = await asyncio.to_thread(
                reference, runtime.model_path, [behaviour(g, g.trajectories[0].leaf)[0] for g in groups]
            )
            said = [behaviour(g, g.trajectories[0].leaf)[1] for g in groups]
            moved = max(float(np.nanmax(np.abs(o - s))) for o, s in zip(old, said, strict=True))
            assert moved > 100 * LEARNER_TO_ENGINE, "the step changed the policy, or this proves nothing"
    return before, after


@pytest.mark.real
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("kind", "tensor_parallel"), [("qwen3", 1), ("qwen3", 2), ("qwen2", 1), ("qwen2", 2), ("llama", 1)]
)
def test_engine_learner_and_transformers_agree_on_multi_turn_trees(
    kind: ModelKind, tensor_parallel: int, tmp_path: Path
) -> None:
    before, after = asyncio.run(measure(tmp_path, kind=kind, tensor_parallel=tensor_parallel))
    print(f"{kind} TP={tensor_parallel}: before the step {before}, after it {after}")
    for gap in (before, after):
        assert gap.num_sampled > 300, gap
        assert gap.to_engine <= LEARNER_TO_ENGINE, gap
        assert gap.to_reference <= LEARNER_TO_REFERENCE, gap


@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_sglang_learner_and_transformers_agree_on_64_multi_turn_trajectories(kind: ModelKind, tmp_path: Path) -> None:
    before, after = asyncio.run(measure(tmp_path, kind=kind, generator=SGLANG, num_trees=8))
    print(f"SGLang, {kind}: before the step {before}, after it {after}")
    for gap in (before, after):
        assert gap.num_sampled > 1000, gap  # a random model may talk little
        assert gap.to_engine <= LEARNER_TO_ENGINE, gap
        assert gap.to_reference <= LEARNER_TO_REFERENCE, gap


async def greedy(runtime: LocalRuntime, router: Router, prefixes: list[Int32]) -> list[list[int]]:
    """What is most likely to follow each prefix."""

    async def follow(number: int, prefix: Int32) -> list[int]:
        request = GenerateRequest(
            request_id=f"greedy-{number}",
            token_ids=prefix,
            sampling=SamplingParams(max_new_tokens=32, temperature=0.0, stop_token_ids=runtime.renderer.stop_token_ids),
        )
        return [int(token) async for chunk in router.generate(request) for token in chunk.token_ids]

    return await asyncio.gather(*(follow(number, prefix) for number, prefix in enumerate(prefixes)))


async def greedy_on_both(folder: Path, *, num_trees: int) -> tuple[list[list[int]], list[list[int]]]:
    """Greedy continuations, behind the last tool result, of multi-turn trajectories that SGLang sampled: by SGLang,
    and by the embedded engine."""
    config = build(folder, "qwen3", generator=SGLANG)
    async with LocalRuntime(config, folder / "sglang") as runtime:
        router = await runtime.start_generators(runtime.model_path)
        groups = await asyncio.gather(*(grow(runtime, router, row=row) for row in range(num_trees)))
        prefixes = [ids for group in groups for t in group.trajectories if (ids := seen(group, t.leaf)).size]
        theirs = await greedy(runtime, router, prefixes)
    async with LocalRuntime(msgspec.structs.replace(config, generator=EMBEDDED), folder / "embedded") as runtime:
        router = await runtime.start_generators(runtime.model_path)
        return await greedy(runtime, router, prefixes), theirs


def seen(group: TrajectoryGroup, leaf: int) -> Int32:
    """A trajectory up to its last observation; empty where it has none."""
    nodes = [group.tree.nodes[i] for i in group.tree.path_to(leaf)]
    while nodes and nodes[-1].kind is not NodeKind.OBSERVED:
        nodes.pop()
    return np.concatenate([np.empty(0, np.int32), *(node.token_ids for node in nodes)])


@pytest.mark.real
@pytest.mark.timeout(240)
def test_sglang_and_the_embedded_engine_go_on_alike_behind_64_tool_results(tmp_path: Path) -> None:
    ours, theirs = asyncio.run(greedy_on_both(tmp_path, num_trees=16))
    assert len(ours) >= 64, len(ours)
    assert sum(len(tokens) for tokens in ours) > 1000
    assert theirs == ours

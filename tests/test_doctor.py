"""The doctor: every check says yes to what is good and names the key of what is not, before anything is allocated."""

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.cli import main
from actors.config import Config
from actors.doctor import batches
from actors.doctor.batches import check_batches, num_batches, trainable_groups
from actors.doctor.budgets import check_budgets
from actors.doctor.case import Case
from actors.doctor.cold_start import check_cold_start
from actors.doctor.data import check_data
from actors.doctor.environment import check_environment
from actors.doctor.examine import CHECKS, check_model, examine
from actors.doctor.finding import Finding, ok, refused, warning
from actors.doctor.forks import check_forks
from actors.doctor.gpus import check_gpus
from actors.doctor.hosts import is_here, listens, num_free_ports
from actors.doctor.layout import check_layouts
from actors.doctor.lengths import check_lengths
from actors.doctor.lines import lines_of
from actors.doctor.machine import Gpu, Machine
from actors.doctor.memory import check_memory
from actors.doctor.model import num_parameters
from actors.doctor.programs import check_programs
from actors.doctor.sampling import check_sampling
from actors.doctor.sizes import GIB, kv_token_bytes, learner_bytes, size, stage_parameters, token_activations
from actors.doctor.steps import check_steps
from actors.doctor.storage import check_storage
from actors.doctor.tools import check_tools
from engine.budget import Account
from engine.buffer import GroupBuffer
from engine.clock import run_virtual
from engine.coins import coin
from engine.config import apply_override, decode
from engine.errors import ToolError
from engine.inference.shape import parameter_shapes
from engine.inference.tiny import make_tiny_model
from engine.rollout_config import BudgetConfig, RolloutConfig
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.train_config import TrainConfig
from engine.types import Node, NodeKind, Prompt, Reward, RolloutStatus, Trajectory, TrajectoryGroup, TrajectoryTree
from learner.config import LearnerConfig, Nll
from tools.python_config import PythonConfig
from tools.python_isolation import Isolation

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PRESETS = {
    "7b-1x8": (CONFIGS / "recipes" / "reasoning.toml", "models/qwen2_5_7b.toml"),
    "14b-16x8": (CONFIGS / "recipes" / "deep_search.toml", "cluster/qwen3_14b_16x8.toml"),
}
"""Configurations for clusters, by nodes and GPUs."""
SEVEN = "model.path=/nowhere/Qwen2.5-7B-Instruct"
SGLANG = "generator.kind=sglang"
RAY = "runtime.backend=ray"
ON_GPUS = f"{RAY} runtime.ray.generator.gpus=1 runtime.ray.learner.gpus=1"
Check = Callable[[Case], Iterable[Finding]]


ISOLATED = Isolation(isolation="namespaces")
FILTERED = Isolation(isolation="filters", reason="unshare: Operation not permitted", landlock=4)


class Computer(Machine):
    """A machine of any kind; a laptop, unless a test says otherwise."""

    def __init__(
        self,
        *,
        gpus: int = 0,
        gpu_gib: int = 80,
        memory_gib: int = 64,
        free_gib: float = 1000,
        shared_gib: float = 32,
        max_open_files: int = 100_000,
        sglang: str | None = "0.5.21",
        versions: dict[str, str] | None = None,
        isolation: Isolation | None = ISOLATED,
    ) -> None:
        self.gpus = tuple(Gpu(name="a GPU", num_bytes=gpu_gib * GIB) for _ in range(gpus))
        self.memory_bytes = memory_gib * GIB
        self.max_open_files = max_open_files
        self.num_cores = 8
        self._free = {False: int(free_gib * GIB), True: int(shared_gib * GIB)}
        self._sglang = sglang
        self._versions = versions
        self._isolation = isolation

    def has_variable(self, name: str) -> bool:
        return False

    def version(self, distribution: str) -> str | None:
        return "1.0" if self._versions is None else self._versions.get(distribution)

    def sglang_version(self, python: str | None) -> str | None:
        return self._sglang

    def isolation(self, python: PythonConfig) -> Isolation:
        if self._isolation is None:
            raise ToolError("python: cannot try /nowhere/python: no such file")
        return self._isolation

    def free_bytes(self, path: str | Path) -> int | None:
        return None if str(path).startswith("/nowhere") else self._free[str(path) == "/dev/shm"]


LAPTOP, ONE_GPU, TWO_GPUS = Computer(), Computer(gpus=1), Computer(gpus=2)


def configuration(*overrides: str) -> Config:
    """A small run of a generated task, on one CPU, of which the doctor has nothing to complain."""
    raw: dict[str, Any] = {
        "world": {},
        "model": {"kind": "tiny", "tokenizer": "words"},
        "data": {"path": "world:train", "max_prompt_tokens": 512},
        "tools": {"python": {}},
        "rollout": {"sampling": {"max_response_tokens": 256}, "branching": {"kind": "arpo"}},
        "generator": {"kind": "embedded"},
        "sft": [{"traces": ["world:sft"], "steps": 30, "learner": {"dtype": "float32", "loss": {"kind": "nll"}}}],
        "learner": {"dtype": "float32"},
        "train": {"steps": 20},
    }
    for override in overrides:
        if override.startswith("model.path"):
            raw["model"] = {"kind": "hf"}
        apply_override(raw, override)
    return decode(raw, Config, source="test.toml")


def case(*overrides: str, machine: Machine = LAPTOP, **options: int) -> Case:
    return Case(config=configuration(*overrides), machine=machine, **options)


def test_a_good_configuration_has_nothing_but_good_findings() -> None:
    findings = examine(case())
    assert {found.level for found in findings} == {"ok"}
    assert all(found.text and "\n" not in found.text for found in findings)


def test_every_check_has_something_good_to_say() -> None:
    """So that a silent check is a check that does not apply."""
    for check in set(CHECKS) - {check_programs}:  # the embedded engine needs no program
        assert list(check(case())), check.__name__


BAD: dict[Check, list[tuple[str, Finding] | tuple[str, Finding, Computer]]] = {
    check_model: [
        (SEVEN, warning("model.path", r"not on this machine; .* 7.62 billion .* by its name")),
        ("model.path=/nowhere/Mamba", refused("model.path", "no model of that name is known")),
        ("model.num_heads=4 model.num_kv_heads=3", refused("model.num_kv_heads", "4 .* 3")),
        ("model.head_dim=33", refused("model.head_dim", "33 is odd")),
        ("model.tokenizer=bpe model.vocab_size=200", refused("model.vocab_size", "needs 269 tokens at least, got 200")),
        ("world=", refused("model.tokenizer", "needs a \\[world\\] section")),
        ("sft=", warning("sft", "random weights without a cold start")),
    ],
    check_data: [
        ("data.path=none.parquet", refused("data.path", "there is no none.parquet")),
        (
            f"data.path=none.parquet {SGLANG} generator.device=cuda",
            warning("data.path", "on this machine, there is no none.parquet"),
        ),
        ("data.path=train.csv", refused("data.path", "ends in .parquet or .jsonl")),
        ("data.path=world:moon", refused("data.path", "a world has corpus, drills, sft, test")),
        ("world=", refused("data.path", r"needs a \[world\] section")),
        ("eval.data.path=world:moon", refused("eval.data.path", "'world:moon'")),
        (
            "eval.data.path=world:test eval.validation.path=world:moon",
            refused("eval.validation.path", "'world:moon'"),
        ),
        ('sft.0.traces=["no.jsonl"]', refused("sft.0.traces", "no.jsonl")),
        ("tools.search.corpus=no.jsonl", refused("tools.search.corpus", "no.jsonl")),
        ("tools.cache.search_cache=no.json", refused("tools.cache.search_cache", "no.json")),
    ],
    check_cold_start: [
        ("sft.0.learner.loss.kind=ppo", refused("sft.0.learner.loss", "'nll'")),
        ("sft.0.shares=[0.5,0.5]", refused("sft.0.shares", "2 shares for 1 file")),
        ("sft.0.traces=[]", refused("sft.0.traces", "none")),
        ("sft.0.until_loss=0.3 sft.0.steps=19", refused("sft.0.until_loss", "20 steps, and there are 19")),
    ],
    check_layouts: [
        (
            f"{SEVEN} learner.tensor_parallel=8",
            refused("learner.tensor_parallel", "28 attention heads do not divide into 8"),
        ),
        (
            f"{SEVEN} learner.tensor_parallel=7",
            refused("learner.tensor_parallel", "4 key-value heads do not divide into 7"),
        ),
        (
            f"{SEVEN} learner.pipeline_parallel=5",
            refused("learner.pipeline_parallel", "28 layers do not divide into 5"),
        ),
        (f"{SEVEN} sft.0.learner.tensor_parallel=3", refused("sft.0.learner.tensor_parallel", "into 3 parts")),
        (
            "learner.distributed_optimizer=true",
            warning("learner.distributed_optimizer", "no effect without data_parallel"),
        ),
        (
            "learner.distributed_optimizer=true learner.data_parallel=2 learner.dtype=float64",
            refused("learner.distributed_optimizer", "float32 masters"),
        ),
        ("learner.sequence_parallel=true", refused("learner.sequence_parallel", "tensor_parallel is 1")),
        (
            f'{SEVEN} {SGLANG} generator.args=["--tp","8"]',
            refused("generator.args", "28 attention heads do not divide into 8"),
        ),
        (
            f'{SEVEN} {SGLANG} generator.args=["--tp-size=7"]',
            refused("generator.args", "4 key-value heads and 7 parts: neither divides the other"),
        ),
        (
            f'{SEVEN} {SGLANG} generator.args=["--tp","two"]',
            refused("generator.args", "--tp-size takes a whole number from 1 on, got 'two'"),
        ),
    ],
    check_gpus: [
        ("learner.data_parallel=4", refused("learner", "4 ranks .* there are 2"), TWO_GPUS),
        ("sft.0.learner.data_parallel=4", refused("sft.0.learner", "4 ranks .* there are 2"), TWO_GPUS),
        (
            f'{SGLANG} generator.args=["--tp","2","--base-gpu-id","1"]',
            refused("generator.args", "begins at GPU 1 and needs 3, and there are 2"),
            TWO_GPUS,
        ),
        (
            "runtime.num_generators=2",
            warning("runtime.num_generators", "GPU 0 has learner-0, generator-0, generator-1"),
            TWO_GPUS,
        ),
        (
            f'{RAY} {SGLANG} generator.args=["--tp","4"] runtime.ray.generator.gpus=1 runtime.ray.learner.gpus=1',
            refused("runtime.ray.generator.gpus", "needs 4, and is given 1"),
        ),
        (
            f"{RAY} runtime.ray.generator.gpus=2 runtime.ray.learner.gpus=1",
            warning("runtime.ray.generator.gpus", "needs 1, and is given 2"),
        ),
        (f"{RAY} runtime.ray.generator.gpus=1", warning("runtime.ray.learner.gpus", "train on CPUs")),
        (
            f"{RAY} learner.data_parallel=2 runtime.ray.learner.gpus=0.5",
            refused("runtime.ray.learner.gpus", "needs 1, and is given 0.5"),
        ),
    ],
    check_memory: [
        (
            f"{SEVEN} learner.dtype=bf16",
            refused("learner", r"127.7 GiB of weights, gradients and optimiser.*a GPU has 80.0 GiB"),
            ONE_GPU,
        ),
        (
            f"{SEVEN} generator.max_kv_tokens=2_000_000",
            refused("generator", "14.2 GiB of weights and 106.8 GiB of keys and values of 2,000,000 tokens"),
            ONE_GPU,
        ),
        (
            f'{SEVEN} {SGLANG} generator.args=["--mem-fraction-static","0.15"]',
            refused("generator", "behind 14.2 GiB of weights there is room .* of 0 tokens"),
            ONE_GPU,
        ),
        (
            f'{SEVEN} {SGLANG} generator.max_kv_tokens=1_000_000 generator.args=["--mem-fraction-static","0.5"]',
            warning("generator.max_kv_tokens", "1,000,000, and there is room for about 483,"),
            ONE_GPU,
        ),
        (
            f"{SEVEN} {SGLANG} runtime.num_generators=2 generator.max_kv_tokens=700_000",
            refused("runtime.num_generators", "learner-0, generator-0, generator-1 share GPU 0"),
            ONE_GPU,
        ),
        (SEVEN, refused("learner", "on the CPU: .* the machine has 64.0 GiB")),
        ("generator.max_kv_tokens=50_000_000", warning("learner", "which leaves little"), Computer(memory_gib=50)),
    ],
    check_storage: [
        (SEVEN, warning("runtime.weights_dir", "/dev/shm has 64.0 MiB free, too little"), Computer(shared_gib=0.0625)),
        (
            SEVEN,
            refused("runtime.weights_dir", "85.1 GiB for 3 versions of 28.4 GiB; .* has 50.0 GiB free"),
            Computer(shared_gib=60, free_gib=50),
        ),
        (
            f"{SEVEN} runtime.weights_dir=disk",
            refused("runtime.weights_dir", "disk has 50.0 GiB free"),
            Computer(free_gib=50),
        ),
        (
            f"{SEVEN} runtime.weights_dir=/nowhere/w",
            warning("runtime.weights_dir", "/nowhere/w is not on this machine"),
        ),
        (
            f"{SEVEN} train.checkpoint_every=2",
            refused("run.dir", "283.7 GiB for 3 checkpoints of 85.1 GiB and 1 of 28.4 GiB .*; runs has 200.0 GiB free"),
            Computer(free_gib=200),
        ),
        (
            f'{SGLANG} generator.urls=["http://10.0.0.7:3"]',
            refused("runtime.weights_dir", "the server at http://10.0.0.7:3 cannot read"),
        ),
        (
            f'{SGLANG} generator.weights=tensor generator.urls=["http://10.0.0.7:3"]',
            refused("generator.weights", "another one"),
        ),
        (RAY, warning("runtime.weights_dir", "memory of one node")),
    ],
    check_programs: [
        (SGLANG, refused("generator.python", "has no sglang"), Computer(sglang=None)),
        (SGLANG, refused("generator.python", "0.5.21 or newer is needed"), Computer(sglang="0.5.9")),
        (
            f"{SGLANG} generator.device=cuda",
            warning("generator.python", "^on this machine, .* has no sglang"),
            Computer(sglang=None),
        ),
        (
            f'{SGLANG} generator.urls=["http://127.0.0.1:9"]',
            refused("generator.urls", "nobody answers at http://127.0.0.1:9 within 3 s"),
        ),
        (
            f"{SGLANG} train.batch_size=64",
            warning("open files", "1,024 for a process, and one may need 2,304: raise it with 'ulimit -n 2304'"),
            Computer(max_open_files=1024),
        ),
        ("generator.kernels=native", refused("generator.kernels", "float32 on a CPU"), ONE_GPU),
        (
            "generator.deterministic=true generator.kernels=torch",
            refused("generator.deterministic", "generator.kernels is 'torch'"),
        ),
        (RAY, warning("runtime.backend", "ray is not installed"), Computer(versions={})),
        (f"{RAY} runtime.ray.address=127.0.0.1:9", warning("runtime.ray.address", "nobody answers at 127.0.0.1:9")),
        ("runtime.threads=9", warning("runtime.threads", "9 threads .* 8 cores")),
    ],
    check_lengths: [
        ("model.max_positions=200", refused("rollout.sampling.max_response_tokens", "do not fit into 200")),
        (
            "generator.max_kv_tokens=700",
            warning("data.max_prompt_tokens", "445 to 512 .* 700 .generator.max_kv_tokens"),
        ),
        (
            "eval.data.path=world:test eval.data.max_prompt_tokens=9000",
            warning("eval.data.max_prompt_tokens", "would not fit into 8,192"),
        ),
        (
            "eval.data.path=world:test eval.validation.path=world:valid eval.validation.max_prompt_tokens=9000",
            warning("eval.validation.max_prompt_tokens", "would not fit into 8,192"),
        ),
        (
            "rollout.sampling.max_segment_tokens=10",
            warning("rollout.branching.probe_tokens", "20 tokens is never known: a segment has up to 10"),
        ),
    ],
    check_batches: [
        ("rollout.size=1", refused("rollout.size", "no batch is ever full")),
        ("rollout.budget.leaves_per_cohort=1", refused("rollout.budget.leaves_per_cohort", "no batch is ever full")),
        (
            "rollout.budget.leaves_per_cohort=8",
            warning("rollout.budget.leaves_per_cohort", "4 of the 8 prompts .* a step takes 2.0 cohorts"),
        ),
        ("train.steps=101", warning("data.epochs", "the data ends at step 100 of 101: 800 prompts")),
        (
            "train.deterministic=true rollout.budget.calls_per_cohort=9",
            refused("train.deterministic", "allows no rollout.budget.calls_per_cohort"),
        ),
        (f"{RAY} rollout.budget.calls_per_run=9", refused("rollout.budget.calls_per_run", "all rollouts in one place")),
    ],
    check_budgets: [
        ("rollout.budget.calls_per_path=0", warning("rollout.budget.calls_per_path", "no tool")),
        ("rollout.budget.calls_per_prompt=7", warning("rollout.budget.calls_per_prompt", "fewer than the 8 paths")),
        ("rollout.budget.calls_per_cohort=7", warning("rollout.budget.calls_per_cohort", "fewer than the 8 prompts")),
        ("rollout.budget.calls_per_run=159", warning("rollout.budget.calls_per_run", "each of 160 prompts")),
        (
            "rollout.budget.calls_per_prompt=97",
            warning("rollout.budget.calls_per_prompt", "never reached: 16 paths of 6 calls are 96"),
        ),
        (
            "rollout.budget.leaves_per_cohort=63",
            warning("rollout.budget.leaves_per_cohort", "less than the 64 paths that begin"),
        ),
        (
            "rollout.budget.leaves_per_cohort=64",
            warning("rollout.budget.leaves_per_cohort", "no place is left for a fork"),
        ),
        ("rollout.budget.leaves_per_cohort=128", warning("rollout.budget.leaves_per_cohort", "no limit")),
    ],
    check_forks: [
        ("rollout.size=4", warning("rollout.branching.initial", "N = 8 .* M = 4")),
        ("rollout.size=8", warning("rollout.branching.initial", "no place is left for a fork")),
        (
            "rollout.size=10 rollout.branching.branches=3",
            warning("rollout.branching.branches", "starts 3 branches, and M - N = 2"),
        ),
        (
            "rollout.branching.tau=0.7",
            warning("rollout.branching.tau", "nothing ever forks: P is 0.7 at most, and must be above 0.7"),
        ),
        ("rollout.branching.tau=0.29", warning("rollout.branching.tau", "everything forks: P is 0.3 at least")),
        (
            "rollout.branching.kind=aepo rollout.branching.tau=0.8",
            warning("rollout.branching.tau", "nothing ever forks"),
        ),
        (
            "rollout.branching.kind=arpo_sampled rollout.branching.alpha=-0.3",
            warning("rollout.branching.alpha", "nothing ever forks"),
        ),
        (
            "rollout.branching.kind=uniform rollout.branching.rate=0.0",
            warning("rollout.branching.rate", "nothing ever forks"),
        ),
        (
            "rollout.granting.kind=ranked rollout.granting.fraction=0.05 rollout.budget.leaves_per_cohort=99",
            warning("rollout.granting.fraction", "rounds to none"),
        ),
        ("rollout.granting.kind=ranked", warning("rollout.granting", "only under .*leaves_per")),
        ("tools.python=", warning("tools", "without tool results nothing forks")),
    ],
    check_tools: [
        (
            "",
            warning(
                "tools.python.isolation", r"not isolated \(unshare: .*\): they have no network and read no file but"
            ),
            Computer(isolation=FILTERED),
        ),
        (
            "tools.python.require_isolation=true",
            refused("tools.python.require_isolation", r"not isolated \(unshare: Operation not permitted\)"),
            Computer(isolation=FILTERED),
        ),
        ("", refused("tools.python.interpreter", "cannot try /nowhere/python"), Computer(isolation=None)),
        (
            'tools.web_search={provider="brave"}',
            refused("tools.web_search.key_env", "variable BRAVE_API_KEY is not set"),
        ),
        (
            'tools.mcp=[{name="time",command=["t"]},{name="far",url="http://far/mcp",key_env="FAR"}]',
            refused("tools.mcp.1.key_env", "variable FAR is not set"),
        ),
        (
            "tools.browse={}",
            refused("tools.browse", r"needs trafilatura: pip install 'arpo-engine\[web\]'"),
            Computer(versions={}),
        ),
    ],
    check_sampling: [
        ("rollout.sampling.temperature=0.7", warning("learner.temperature", "sampled at 0.7 and scored at 1")),
        ("rollout.sampling.temperature=0", refused("rollout.sampling.temperature", "greedy")),
        ("rollout.sampling.top_p=0.9", warning("rollout.sampling.top_p", "cut")),
        ("rollout.sampling.top_k=50", warning("rollout.sampling.top_k", "cut")),
        ("learner.loss.kind=nll", warning("learner.loss.kind", "cold start")),
    ],
    check_steps: [
        ("train.checkpoint_every=21", warning("train.checkpoint_every", "no checkpoint before the last of 20 steps")),
        ("train.eval_every=5", warning("train.eval_every", r"no \[eval\] section")),
        ("eval.data.path=world:test", warning("train.eval_every", "before training, and not after it")),
        ("learner.num_minibatches=9", warning("learner.num_minibatches", "9 shares of 8 prompts")),
        (
            "learner.schedule.kind=cosine learner.schedule.total_steps=10",
            warning("learner.schedule.total_steps", "the learning rate is 0 from step 10 of 20 on"),
        ),
        (
            "sft.0.learner.schedule.kind=constant sft.0.learner.schedule.warmup_steps=30",
            warning("sft.0.learner.schedule.warmup_steps", "is never reached"),
        ),
    ],
}


ROWS = [(check, overrides, expected, *machine) for check, rows in BAD.items() for overrides, expected, *machine in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0].__name__.removeprefix('check_')}-{row[2].key}")
def test_a_bad_configuration_is_told_by_its_key(row: tuple[Any, ...]) -> None:
    check, overrides, expected, *machine = row
    findings = list(check(case(*overrides.split(), machine=machine[0] if machine else LAPTOP)))
    told = [found for found in findings if (found.level, found.key) == (expected.level, expected.key)]
    assert any(re.search(expected.text, found.text) for found in told), findings


def test_every_check_is_in_the_table() -> None:
    assert set(BAD) == set(CHECKS)


GOOD: list[tuple[Check, str, Computer, dict[str, int], str]] = [
    (check_gpus, "", ONE_GPU, {}, "shared: GPU 0 has learner-0, generator-0"),
    (check_gpus, f"{SGLANG} generator.device=cuda", LAPTOP, {"num_gpus": 8}, "1 of 8 are needed"),
    (check_gpus, ON_GPUS, LAPTOP, {"num_gpus": 2}, "2 of 2 are needed: 1 x 1 for generators, 1 x 1 for the learner"),
    (check_memory, "", ONE_GPU, {}, "a GPU has 80.0 GiB"),
    (check_memory, "", ONE_GPU, {"gpu_bytes": 40 * GIB}, "a GPU has 40.0 GiB"),
    (check_memory, f"{SEVEN} {SGLANG} generator.device=cuda", LAPTOP, {}, "14.2 GiB of weights, .* 56.0 KiB a token"),
    (check_layouts, f'{SEVEN} {SGLANG} generator.args=["--tp","4"]', LAPTOP, {}, "TP 4 x PP 1 x DP 1"),
    (check_layouts, "learner.tensor_parallel=2", LAPTOP, {}, "TP 2 x PP 1 x DP 1"),
    (check_programs, SGLANG, LAPTOP, {}, "has sglang 0.5.21"),
    (check_tools, "", LAPTOP, {}, "programs run isolated, each in namespaces of its own"),
    (check_tools, "tools.python.url=http://10.0.0.9:8080", LAPTOP, {}, "programs run at http://10.0.0.9:8080"),
    (check_forks, "rollout.branching.kind=chain", LAPTOP, {}, "16 independent trajectories"),
    (check_batches, "train.steps=", LAPTOP, {}, "800 prompts are 100 steps at most"),
    (check_batches, "train.deterministic=true", LAPTOP, {}, "16 slots"),
    (check_budgets, "rollout.budget.leaves_per_cohort=100", LAPTOP, {}, "agree"),
    (check_steps, "eval.data.path=world:test train.eval_every=5", LAPTOP, {}, "9 steps again"),
]


@pytest.mark.parametrize(("check", "overrides", "machine", "options", "text"), GOOD)
def test_a_good_configuration_is_told_so(
    check: Check, overrides: str, machine: Computer, options: dict[str, int], text: str
) -> None:
    findings = list(check(case(*overrides.split(), machine=machine, **options)))
    assert [found for found in findings if found.level == "refused"] == []
    assert any(found.level == "ok" and re.search(text, found.text) for found in findings), findings


def test_too_few_gpus_of_a_cluster_are_refused() -> None:
    (found,) = check_gpus(case(*ON_GPUS.split(), "runtime.num_generators=3", num_gpus=3))
    assert found == refused("gpus", "4 are needed, 3 x 1 for generators, 1 x 1 for the learner, and there are 3")


# -- the model and its sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("Qwen2.5-3B-Instruct", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen3-8B", 8_190_735_360),
        ("Qwen3-14B", 14_768_307_200),
    ],
)
def test_a_model_that_is_elsewhere_is_known_by_its_name(name: str, number: int) -> None:
    shape = case(f"model.path=/nowhere/{name}").shape
    assert shape is not None
    assert num_parameters(shape) == number


def test_a_model_folder_is_read_and_compared_with_its_tensors(tmp_path: Path) -> None:
    make_word_tokenizer(tmp_path, words=["who", "is"])
    vocab_size = load_tokenizer(tmp_path).vocab_size
    shape = make_tiny_model(tmp_path, vocab_size=vocab_size, num_layers=1)
    here = case(f"model.path={tmp_path}")
    assert here.shape == shape
    assert [found.level for found in check_model(here)] == ["ok"]
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "intermediate_size": 99}))
    (tmp_path / "tokenizer.json").unlink()
    told = [found.text for found in check_model(case(f"model.path={tmp_path}")) if found.level == "refused"]
    assert re.search(r"gate_proj.weight is \[384, 128\], the model wants \[99, 128\]", told[0])
    assert told[1].endswith("tokenizer.json is missing")
    (tmp_path / "config.json").write_text(json.dumps({**raw, "model_type": "mamba"}))
    assert "model_type 'mamba'" in next(iter(check_model(case(f"model.path={tmp_path}")))).text


def test_a_data_file_is_counted_and_one_without_a_column_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [{"prompt": "who", "reward_model": {"ground_truth": answer}} for answer in ("a", "", "b")]
    file.write_text("\n".join(map(json.dumps, rows)))
    here = case(f"data.path={file}", "data.epochs=4", "train.batch_size=4", "train.steps=3")
    assert next(iter(check_data(here))) == ok("data.path", f"{file}: 2 rows with an answer")
    assert any("the data ends at step 2 of 3: 8 prompts" in found.text for found in check_batches(here))
    other = case(f"data.path={file}", "data.answer_column=answer")
    assert next(iter(check_data(other))).level == "refused"
    file.write_text(json.dumps({"prompt": "who", "reward_model": {"ground_truth": ""}}))
    assert next(iter(check_data(case(f"data.path={file}")))).text.endswith("no row has an answer")


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(("tp_size", "num_stages"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_a_rank_holds_what_the_learner_maps_to_it(kind: str, is_tied: bool, tp_size: int, num_stages: int) -> None:
    from learner.storage.weights import stage_mappings  # torch

    tie = f"model.tie={str(is_tied).lower()}"
    shape = case(f"model.shape={kind}", tie, "model.num_layers=4").shape
    assert shape is not None
    for stage in range(num_stages):
        mappings = stage_mappings(shape, stage=stage, num_stages=num_stages)
        shares = [(m.shapes, 1 if m.rule == "whole" else tp_size) for m in mappings]
        expected = sum(int(np.prod(extents)) // share for shapes, share in shares for extents in shapes)
        assert stage_parameters(shape, stage=stage, num_stages=num_stages, tp_size=tp_size) == expected


def test_sizes_of_a_rank_by_hand() -> None:
    shape = case(SEVEN).shape
    assert shape is not None
    assert kv_token_bytes(shape) == 2 * 28 * 4 * 128 * 2
    assert kv_token_bytes(shape, tp_size=8) == 2 * 28 * 1 * 128 * 2, "more ranks than heads repeat them"
    whole = learner_bytes(shape, LearnerConfig(), row_tokens=100)
    assert whole.state == num_parameters(shape) * (2 + 4 + 4 + 4 + 4)
    assert (whole.undo, whole.logits) == (0, 100 * 18 * 152_064)
    assert learner_bytes(shape, LearnerConfig(num_minibatches=2), row_tokens=1).undo == num_parameters(shape) * 14
    zero = learner_bytes(shape, LearnerConfig(data_parallel=4, distributed_optimizer=True), row_tokens=100)
    assert zero.state == num_parameters(shape) * (2 + 4 + 12 // 4), "replicas share masters and moments"
    halves = learner_bytes(shape, LearnerConfig(pipeline_parallel=2), row_tokens=100)
    assert halves.activations in (whole.activations, whole.activations // 2), "the first stage holds two rows of half"
    shared = LearnerConfig(tensor_parallel=4, sequence_parallel=True)
    each = [token_activations(shape, config, num_layers=28) for config in (LearnerConfig(), shared)]
    assert each[0] == 4 * each[1], "everything is shared along the sequence"
    kinds = ("none", "selective", "full")
    kept = [token_activations(shape, LearnerConfig(recompute=kind), num_layers=28) for kind in kinds]
    assert kept == sorted(kept, reverse=True)
    assert (size(3 * GIB), size(2**20)) == ("3.0 GiB", "1.0 MiB")


@pytest.mark.real
@pytest.mark.timeout(120)
@pytest.mark.parametrize("dtype", ["bf16", "float32"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_activations_are_what_autograd_keeps(kind: Any, dtype: Any, tmp_path: Path) -> None:
    import torch

    from learner.megatron import MegatronLearner
    from learner.sft import batch_of, sample_of

    lengths = (200, 120, 64)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 1024, n).astype(np.int32) for n in lengths]
    samples = [
        sample_of(f"r{n}", token_ids=ids, is_trained=np.arange(ids.size) > 0, row=n) for n, ids in enumerate(rows)
    ]
    config = LearnerConfig(dtype=dtype, loss=Nll(), micro_batch_tokens=sum(lengths))
    kept: list[int] = []
    for num_layers in (2, 6):
        shape = make_tiny_model(tmp_path, kind=kind, num_layers=num_layers, hidden_size=192)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            MegatronLearner(config, model_path=tmp_path, weights_dir=tmp_path) as learner,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            learner.step(batch_of(1, samples))
        weights = num_parameters(shape) * (2 if dtype == "bf16" else 4)
        kept.append(sum(storages.values()) - weights)
    # Between the two models lie four layers, and nothing else.
    measured = (kept[1] - kept[0]) / sum(lengths)
    assert measured == pytest.approx(token_activations(shape, config, num_layers=4), rel=0.1)


# -- the buffer -----------------------------------------------------------------------------------------------


def group(prompt_id: str, version: int) -> TrajectoryGroup:
    ids, floats = np.zeros(1, np.int32), np.zeros(1, np.float32)
    prompt = Prompt(prompt_id=prompt_id, epoch=0, row=0, token_ids=ids, question="", ground_truth="")
    versions = np.full(1, version, np.int32)
    node = Node(parent=-1, kind=NodeKind.SAMPLED, token_ids=ids, logprobs=floats, versions=versions, entropies=floats)
    end = Trajectory(path=0, leaf=0, status=RolloutStatus.COMPLETED, reward=Reward(score=0.0))
    return TrajectoryGroup(prompt=prompt, tree=TrajectoryTree(nodes=(node,)), trajectories=(end,))


def simulated(train: TrainConfig, rollout: RolloutConfig, *, num_prompts: int, seed: int, is_greedy: bool) -> list[int]:
    """Sizes of the batches that the real buffer gives under the real accounts, whatever finishes when.

    A tree takes the two trajectories that a signal needs; where `is_greedy`, any number up to M.
    """
    sizes: list[int] = []
    accounts: dict[int, Account] = {}

    async def grow(buffer: GroupBuffer, prompt_id: str, leaves: Account) -> None:
        wanted = (
            1 + int(coin(seed, prompt_id, "wanted") * rollout.size) if is_greedy else min(batches.LEAST, rollout.size)
        )
        taken = sum(leaves.reserve() is not None for _ in range(wanted))
        await asyncio.sleep(coin(seed, prompt_id, "run") * 30)
        if taken >= 2:
            await buffer.finish(group(prompt_id, buffer.version))
        else:
            await buffer.refuse(prompt_id)

    async def admit(buffer: GroupBuffer) -> None:
        async with asyncio.TaskGroup() as trees:
            for number in range(num_prompts):
                slot = await buffer.admit(f"p{number}")
                name = f"cohort {slot.cohort}"
                leaves = accounts.setdefault(slot.cohort, Account(name, limit=rollout.budget.leaves_per_cohort))
                trees.create_task(grow(buffer, slot.prompt_id, leaves))
        await buffer.close()

    async def learn(buffer: GroupBuffer) -> None:
        while (batch := await buffer.take()) is not None:
            assert all(0 <= buffer.version - taken.oldest_version <= train.max_staleness for taken in batch)
            sizes.append(len(batch))
            await asyncio.sleep(coin(seed, "learn", len(sizes)) * 10)
            await buffer.release(version=buffer.version + 1)

    async def main() -> None:
        buffer = GroupBuffer(
            batch_size=train.batch_size, max_staleness=train.max_staleness, by_cohort=train.deterministic
        )
        async with asyncio.TaskGroup() as loops:
            loops.create_task(admit(buffer))
            loops.create_task(learn(buffer))

    run_virtual(main())
    return sizes


@given(
    batch_size=st.integers(1, 5),
    max_staleness=st.integers(0, 2),
    leaves=st.none() | st.integers(1, 14),
    rollout_size=st.integers(1, 4),
    num_prompts=st.integers(1, 24),
    is_deterministic=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_real_buffer_gives_as_many_batches_as_the_doctor_says(
    batch_size: int,
    max_staleness: int,
    leaves: int | None,
    rollout_size: int,
    num_prompts: int,
    is_deterministic: bool,
    seed: int,
) -> None:
    train = TrainConfig(batch_size=batch_size, max_staleness=max_staleness, deterministic=is_deterministic)
    rollout = RolloutConfig(size=rollout_size, budget=BudgetConfig(leaves_per_cohort=leaves))
    expected = num_batches(train, rollout, num_prompts=num_prompts)
    options: dict[str, Any] = {"num_prompts": num_prompts, "seed": seed}
    sizes = simulated(train, rollout, is_greedy=False, **options)
    assert len(sizes) == expected
    most = trainable_groups(rollout, batch_size=batch_size)
    assert (sum(sizes) == 0) == (most == 0), "refused is what never trains a group, and nothing else"
    assert sum(simulated(train, rollout, is_greedy=True, **options)) <= sum(sizes), "no other taking trains more"


# -- what a person sees ---------------------------------------------------------------------------------------


def test_findings_stand_in_columns_with_what_is_refused_last() -> None:
    findings = [refused("a.key", "first thing"), ok("b", "second"), warning("a.longer.key", "third, which is longer")]
    assert lines_of(findings, subject="x.toml") == [
        "ok       b             second",
        "warning  a.longer.key  third, which is longer",
        "refused  a.key         first thing",
        "x.toml: 1 refused, 1 warning, 1 ok",
    ]
    text = "one two three four five six seven eight nine ten"
    lines = lines_of([ok("k", text)], subject="x", width=45)
    assert lines[:2] == ["ok       k  one two three four five six seven", "            eight nine ten"]
    assert lines_of([ok("k", text)], subject="x", width=20)[0].endswith(text), "too narrow to be broken"


def test_the_machine_alone_is_told_with_what_it_lacks() -> None:
    have = dict.fromkeys(
        ("torch", "megatron-core", "msgspec", "aiohttp", "pyarrow", "tokenizers", "safetensors"), "9.9"
    )
    good = list(check_environment(Computer(gpus=2, versions=have)))
    assert {found.level for found in good} == {"ok"}
    assert [found.text for found in good if found.key == "GPU 1"] == ["a GPU, 80.0 GiB"]
    assert next(found.text for found in good if found.key == "flash-attn").startswith("not installed: ")
    bad = check_environment(Computer(shared_gib=0.0625, max_open_files=256, versions={**have, "torch": ""}))
    told = {found.key: found.level for found in bad if found.level != "ok"}
    assert told == {"torch": "refused", "/dev/shm": "warning", "open files": "warning"}


def test_addresses_and_ports() -> None:
    assert is_here("http://127.0.0.1:30000")
    assert is_here(f"http://{socket.gethostname()}:1")
    assert not is_here("http://10.0.0.7:30000")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listens(f"ray://127.0.0.1:{server.getsockname()[1]}")
    assert not listens("127.0.0.1:9")
    assert not listens("127.0.0.1:none")
    assert num_free_ports(3) == 3


def test_this_machine_can_be_asked() -> None:
    machine = Machine()
    assert machine.version("msgspec")
    assert machine.version("no-such-thing") is None
    assert machine.sglang_version("/nowhere/python") is None
    assert machine.memory_bytes > 0 < machine.max_open_files
    assert machine.free_bytes("/nowhere/at/all") is None
    assert isinstance(machine.free_bytes("not/yet"), int)


# -- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "gpus"), [("7b-1x8", 8), ("14b-16x8", 128)])
def test_the_presets_for_clusters_pass_on_a_machine_without_gpus(name: str, gpus: int) -> None:
    config = Config.load(*PRESETS[name])
    for options in ({}, {"num_gpus": gpus, "gpu_bytes": 79 * GIB}):
        findings = examine(Case(config=config, machine=LAPTOP, **options))
        assert [found for found in findings if found.level == "refused"] == []
    smaller = examine(Case(config=config, machine=LAPTOP, num_gpus=gpus // 2, gpu_bytes=48 * GIB))
    too_much = {"learner", "gpus" if config.runtime.backend == "ray" else "generator.args"}
    assert {found.key for found in smaller if found.level == "refused"} == too_much
    keeps_less = any(found.key == "generator.max_kv_tokens" for found in smaller)
    assert keeps_less == (config.generator.max_kv_tokens is not None), "SGLang keeps what there is room for"
    # On the machines they are meant for, everything but the files is there.
    node = Computer(gpus=8, shared_gib=500, memory_gib=1000, free_gib=4000)
    told = [found for found in examine(Case(config=config, machine=node)) if found.level == "refused"]
    assert {found.key for found in told} <= {"data.path", "eval.data.path", "tools.search.corpus"}


def test_the_exit_code_says_whether_anything_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(CONFIGS / "demo.toml")
    assert main(["doctor", demo]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"demo.toml: \d+ warnings, \d+ ok\n$", captured.err)
    assert main(["doctor", demo, "learner.tensor_parallel=3"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert re.search(r"^refused  learner.tensor_parallel +4 attention heads do not divide into 3 parts$", lines[-4])
    assert main(["doctor", demo, "learner.lrr=1"]) == 2
    assert "unknown field `lrr` - at `$.learner`" in capsys.readouterr().err
    assert main(["doctor", "none.toml"]) == 2
    assert capsys.readouterr().err == "arpo: none.toml: no such configuration file\n"


def test_findings_come_as_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, model = PRESETS["7b-1x8"]
    assert main(["doctor", "--json", str(recipe), model, "--gpus", "8", "--gpu-memory-gib", "24", "train.steps=3"]) == 3
    captured = capsys.readouterr()
    assert captured.err == ""
    findings = msgspec.json.decode(captured.out, type=list[Finding])
    assert {found.key for found in findings if found.level == "refused"} == {"learner"}


def test_without_a_configuration_it_tells_about_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    told = capsys.readouterr().err
    for name in ("python", "torch", "megatron-core", "sglang", "ray", "flash-attn", "/dev/shm", "open files"):
        assert re.search(rf"^\w+ +{name} +\S", told, re.MULTILINE), name


def test_help_is_there_and_an_examination_loads_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: arpo doctor")
    with pytest.raises(SystemExit):
        main(["doctor", "--gpus", "0"])
    assert capsys.readouterr().err.count("\n") == 1
    code = "import sys\nfrom actors.cli import main\ncode = main(['doctor', sys.argv[1]])\n"
    code += "sys.exit(code or ', '.join({'torch', 'megatron', 'ray', 'aiohttp'} & set(sys.modules)) or 0)"
    told = subprocess.run(
        [sys.executable, "-c", code, CONFIGS / "demo.toml"], capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr


def test_the_table_of_shapes_names_every_tensor() -> None:
    shape = case(SEVEN).shape
    assert shape is not None
    assert len(parameter_shapes(shape)) == 3 + 28 * 12

"""The paper's recipes: decoded for every model, with the paper's numbers, and passed by the doctor without a GPU."""

import re
import shlex
import tomllib
from pathlib import Path

import msgspec
import pytest

from actors.cli import parse
from actors.config import Config, HfModel
from actors.doctor.case import Case
from actors.doctor.examine import examine
from actors.doctor.sizes import GIB
from learner.config import ArpoSoft, Decoupled, Ppo, TokenMean
from tests.test_doctor import LAPTOP, Computer

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = ("reasoning", "deep_search")
MODELS = sorted(path.stem for path in (CONFIGS / "models").glob("*.toml"))
NUM_GPUS = {"qwen3_14b": 16}
"""Of the models that need more than one node."""
LAYOUT = {"tensor_parallel", "pipeline_parallel", "data_parallel", "distributed_optimizer"}


def recipe(name: str, *layers: str) -> Config:
    return Config.load(CONFIGS / "recipes" / f"{name}.toml", *layers)


def refusals(config: Config, *, num_gpus: int = 8, machine: Computer = LAPTOP) -> list[str]:
    findings = examine(Case(config=config, machine=machine, num_gpus=num_gpus, gpu_bytes=79 * GIB))
    return [f"{found.key}: {found.text}" for found in findings if found.level == "refused"]


def test_there_is_a_model_for_every_row_of_the_papers_tables() -> None:
    assert MODELS == ["llama3_1_8b", "qwen2_5_3b", "qwen2_5_7b", "qwen3_14b", "qwen3_8b"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_papers_numbers(name: str) -> None:
    config = recipe(name)
    branching = msgspec.to_builtins(config.rollout.branching)
    assert branching == {
        "kind": "arpo",
        "initial": 8,
        "probe_tokens": 20,
        "branches": 1,
        "fork_at": "probe_end",
        "alpha": 0.5,
        "beta": 0.2,
        "tau": 0.5,
    }
    assert config.rollout.size == 16
    assert (config.train.batch_size, config.learner.num_minibatches) == (128, 8)
    learner = config.learner
    assert (learner.lr, learner.weight_decay, learner.grad_clip, learner.kl) == (1e-6, 0.01, 1.0, None)
    assert (learner.advantage, learner.normalisation, learner.correction) == (ArpoSoft(), TokenMean(), Decoupled())
    assert learner.loss == Ppo(eps_low=0.2, eps_high=0.2, dual_clip=3.0)
    sampling = config.rollout.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, -1)
    asked = (config.data.epochs, sampling.max_response_tokens, config.rollout.budget.calls_per_path)
    assert asked == {"reasoning": (2, 4096, 3), "deep_search": (5, 8192, 6)}[name]
    # The steps that many epochs can have at most.
    assert config.train.steps == {"reasoning": 10_000, "deep_search": 1071}[name] * asked[0] // 128


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("reasoning", ["rollout.branching", "fork_at", "max_staleness", "correction", "tools.reward", "tools.search"]),
        ("deep_search", ["max_response_tokens", "tools", "tools.reward"]),
    ],
)
def test_a_recipe_says_how_it_differs_from_the_paper_and_from_the_code(name: str, keys: list[str]) -> None:
    heading = (CONFIGS / "recipes" / f"{name}.toml").read_text().split("[model]")[0]
    assert [key for key in keys if f"\n#   {key} " not in heading] == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_model_passes_the_doctor_on_a_machine_without_gpus(name: str, model: str) -> None:
    num_gpus = NUM_GPUS.get(model, 8)
    config = recipe(name, f"models/{model}.toml")
    assert refusals(config, num_gpus=num_gpus) == []
    assert refusals(config, num_gpus=num_gpus // 2) != []
    # On the machines it is meant for, everything but the files is there.
    node = Computer(gpus=8, shared_gib=500, memory_gib=1000, free_gib=4000)
    missing = {line.split(":")[0] for line in refusals(config, num_gpus=num_gpus, machine=node)}
    assert missing <= {"data.path", "eval.data.path", "tools.search.corpus"}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_a_path_and_a_layout_and_nothing_of_an_algorithm(model: str) -> None:
    said = tomllib.loads((CONFIGS / "models" / f"{model}.toml").read_text())
    assert set(said) <= {"model", "run", "generator", "learner", "runtime"}
    assert set(said["learner"]) <= LAYOUT
    assert set(said.get("generator", {})) <= {"args"}
    config = recipe("reasoning", f"models/{model}.toml")
    assert isinstance(config.model, HfModel)
    assert Path(config.model.path).name.lower().replace("-", "_").replace(".", "_").replace("_instruct", "") == {
        "llama3_1_8b": "llama_3_1_8b"
    }.get(model, model)


@pytest.mark.parametrize("model", MODELS)
def test_the_cold_start_fits_every_model(model: str) -> None:
    wide = ["sft.0.learner.tensor_parallel=8", "sft.0.learner.data_parallel=1"] if model in NUM_GPUS else []
    config = recipe("reasoning", f"models/{model}.toml", "recipes/cold_start.toml", *wide)
    assert refusals(config, num_gpus=NUM_GPUS.get(model, 8)) == []
    (stage,) = config.sft
    assert (stage.learner.lr, stage.batch_size, stage.learner.weight_decay) == (7e-6, 128, 0.1)
    assert stage.steps == -(-54_000 * 3 // 128)


@pytest.mark.parametrize("name", RECIPES)
def test_the_papers_evaluation_and_judge_are_layers(name: str) -> None:
    config = recipe(name, "evaluation/paper.toml", "evaluation/judge.toml")
    assert config.eval is not None
    assert config.eval.sampling.sampling == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert config.rollout.sampling.max_segment_tokens == 4096
    assert config.rollout.budget.calls_per_path == 15
    assert config.eval.judge is not None
    assert config.eval.judge.model == "Qwen/Qwen2.5-72B-Instruct"
    prompt = config.eval.data.system_prompt
    assert prompt is not None
    assert "\\boxed{answer here}" in prompt
    assert "  " not in prompt.strip().replace("\n", "  ")
    assert refusals(config) == []


def test_a_cluster_is_the_recipe_on_other_machines() -> None:
    said = tomllib.loads((CONFIGS / "cluster" / "qwen3_14b_16x8.toml").read_text())
    assert set(said["learner"]) <= LAYOUT | {"micro_batch_tokens", "recompute"}
    assert said["rollout"] == {"sampling": {"max_segment_tokens": 4096}}
    assert "train" not in said
    config = recipe("deep_search", "cluster/qwen3_14b_16x8.toml")
    assert refusals(config, num_gpus=128) == []
    assert refusals(config, num_gpus=127) != []


LAYOUTS = {
    "7b": ("reasoning", ("models/qwen2_5_7b.toml",), 8),
    "7b on servers of one GPU": ("reasoning", ("models/qwen2_5_7b.toml", "bench/servers_of_one_gpu.toml"), 8),
    "8b on servers of one GPU": ("deep_search", ("models/qwen3_8b.toml", "bench/servers_of_one_gpu.toml"), 8),
    "14b": ("deep_search", ("cluster/qwen3_14b_16x8.toml",), 128),
}
BENCHES = sorted(path.name for path in (CONFIGS / "bench").glob("*.toml"))


@pytest.mark.parametrize("bench", ["throughput.toml", "tool_budget.toml"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bench_for_gpus_passes_the_doctor_on_the_machines_it_is_for(layout: str, bench: str) -> None:
    name, layers, num_gpus = LAYOUTS[layout]
    config = recipe(name, *layers, f"bench/{bench}")
    assert refusals(config, num_gpus=num_gpus) == []
    assert refusals(config, num_gpus=num_gpus // 2) != []
    assert config.tools.cache.memory_mib == 0
    assert config.tools.cache.file == ""


@pytest.mark.parametrize("bench", BENCHES)
def test_a_bench_for_gpus_changes_no_algorithm_and_shows_commands_that_are_taken(bench: str) -> None:
    text = (CONFIGS / "bench" / bench).read_text()
    said = tomllib.loads(text)
    assert set(said) <= {"eval", "tools", "rollout", "generator", "train", "runtime"}
    assert set(said.get("rollout", {})) <= {"budget"}
    commands = re.findall(r"`arpo (.+?)`", text.replace("\n#", ""), re.DOTALL)
    assert commands
    for command in commands:
        arguments = parse(shlex.split(command))
        assert f"bench/{bench}" in arguments.overrides
        Config.load(CONFIGS.parent / arguments.config, *arguments.overrides)
    for override in re.findall(r"`(rollout\.[^`]+)`", text):
        recipe("deep_search", f"bench/{bench}", override)


def test_half_of_the_calls_of_a_step_are_the_budget() -> None:
    config = recipe("reasoning", "bench/tool_budget.toml")
    calls = config.rollout.budget.calls_per_path
    assert calls is not None
    assert config.rollout.budget.calls_per_cohort == config.train.batch_size * config.rollout.size * calls // 2
    deep = recipe("deep_search").rollout.budget.calls_per_path
    assert deep is not None
    assert f"calls_per_cohort={128 * 16 * deep // 2}" in (CONFIGS / "bench" / "tool_budget.toml").read_text()

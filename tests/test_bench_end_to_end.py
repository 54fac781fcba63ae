"""The end-to-end bench: both sides are given the same, the clock runs between steps, TRL comes on request only."""

import doctest
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import transformers

from actors.bench import end_to_end_bench as bench
from actors.bench import end_to_end_engine as engine
from actors.bench import end_to_end_task
from actors.bench.end_to_end_task import Task, Told, rate, reward_of
from actors.bench.trl_install import trl_folder, with_trl
from actors.config import Config
from engine.dataset import PromptDataset
from engine.errors import ConfigError
from engine.events import AnyEvent, PathEnded, TokensSampled, WeightsPublished
from engine.renderer import make_renderer
from engine.tokenizer import load_tokenizer
from engine.types import RolloutStatus

STEPS = 4
AUTO = cast("Any", transformers)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return engine.configured(tmp_path_factory.mktemp("bench"), seed=3, steps=STEPS)


@pytest.fixture(scope="module")
def task(config: Config) -> Task:
    return engine.task_of(config, threads=2)


def test_both_sides_train_16_prompts_of_8_completions_a_step_alike(config: Config, task: Task) -> None:
    assert (task.num_prompts, task.num_completions, task.steps, task.threads) == (16, 8, STEPS, 2)
    assert len(task.prompts) == 16 * STEPS
    assert (config.learner.dtype, config.learner.num_minibatches, config.learner.weight_decay) == ("float32", 1, 0.0)
    assert (task.max_tokens, task.temperature) == (128, 1.0)
    sampling = config.rollout.sampling
    assert (sampling.max_segment_tokens, sampling.top_p, sampling.top_k) == (task.max_tokens, 1.0, -1)
    assert (task.lr, task.grad_clip, task.clip) == (config.learner.lr, config.learner.grad_clip, 0.2)


def test_both_sides_read_the_same_tokens_in_the_same_order_and_end_at_the_same_one(config: Config, task: Task) -> None:
    theirs = AUTO.AutoTokenizer.from_pretrained(task.model_path)
    renderer = make_renderer(config.renderer, tokenizer=load_tokenizer(task.model_path), specs=())
    ours = PromptDataset(config.data, renderer=renderer).prompts()
    for messages, prompt in zip(task.prompts, ours, strict=False):
        read = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert theirs(read, add_special_tokens=False)["input_ids"] == prompt.token_ids.tolist()
    model = AUTO.AutoConfig.from_pretrained(task.model_path)
    assert renderer.stop_token_ids == (theirs.eos_token_id,) == (model.eos_token_id,)
    assert renderer.stop_strings == ()


def test_seeds_ask_in_another_order_and_start_from_the_same_model(config: Config, task: Task) -> None:
    other = engine.task_of(engine.configured(Path(config.run.dir), seed=4, steps=STEPS), threads=2)
    assert other.prompts != task.prompts
    assert other.model_path == task.model_path


def test_the_reward_is_the_share_of_words_of_half_the_alphabet() -> None:
    assert reward_of("Apples and oranges") == pytest.approx(2 / 3)
    assert reward_of("apples and oranges<|im_end|>") == reward_of("apples and oranges <|im_end|>") == 2 / 3
    assert reward_of("") == reward_of("7 + !") == 0.0


def test_the_clock_runs_between_steps_behind_the_first_and_before_the_last() -> None:
    ends_s = [100.0, 110.0, 112.0, 114.0, 116.0, 150.0]
    assert rate(ends_s, completions=128, skip_first=1, skip_last=1) == 64.0
    told = Told(ends_s=tuple(ends_s), tokens=90.0)
    task = Task(
        model_path="",
        prompts=(),
        num_prompts=16,
        num_completions=8,
        max_tokens=1,
        temperature=1.0,
        lr=1.0,
        grad_clip=1.0,
        clip=0.2,
        steps=6,
        threads=1,
    )
    assert bench.record_of(told, task, skip_last=1) == {"completions_per_s": 64.0, "tokens_per_completion": 90.0}


def test_the_examples_in_docstrings_are_true() -> None:
    found = doctest.testmod(end_to_end_task)
    assert (found.attempted, found.failed) == (2, 0)


def test_a_run_says_when_its_weights_had_arrived_and_how_long_completions_were() -> None:
    def sampled(path: int, size: int) -> TokensSampled:
        ids, zeros = np.zeros(size, np.int32), np.zeros(size, np.float32)
        return TokensSampled(
            prompt_id="a",
            path=path,
            token_ids=ids,
            logprobs=zeros,
            entropy_low=zeros,
            entropy_high=zeros,
            versions=ids,
        )

    ended = [PathEnded(prompt_id="a", path=path, status=RolloutStatus.COMPLETED) for path in (0, 1)]
    published = [WeightsPublished(t=t, version=1, step=1, prompt_ids=()) for t in (5.0, 7.0)]
    events: list[AnyEvent] = [sampled(0, 16), sampled(1, 4), sampled(0, 10), *ended, *published]
    assert engine.told(events) == Told(ends_s=(5.0, 7.0), tokens=15.0)


def test_trl_is_no_arm_until_it_is_asked_for(tmp_path: Path) -> None:
    (made,) = bench.benches(tmp_path, is_quick=True)
    places = ["one_core", "two_cores"][: min(len(os.sched_getaffinity(0)), 2)]
    assert list(made.arms) == [f"engine_{place}" for place in places]
    assert {f"trl_{place}" for place in places} <= set(made.skipped)


def test_figures_are_of_the_arms_there_are_and_compare_pairs() -> None:
    def records(*values: float) -> list[dict[str, float]]:
        return [{"completions_per_s": value, "tokens_per_completion": 90.0} for value in values]

    alone = {"engine_one_core": records(50.0, 70.0, 60.0)}
    assert bench.figures(alone) == {"completions_per_s_one_core": 60.0}
    both = alone | {"trl_one_core": records(10.0, 10.0, 20.0)}
    assert bench.figures(both) == {
        "completions_per_s_one_core": 60.0,
        "trl_completions_per_s_one_core": 10.0,
        "speedup_vs_trl_one_core": 5.0,
    }


def test_what_cannot_be_installed_is_one_line_and_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "trl.lock").write_text("trl == what\n")
    said: list[str] = []
    with pytest.raises(ConfigError, match="--with-trl: ") as caught:
        trl_folder(say=said.append, cache=tmp_path / "cache", lock=tmp_path / "trl.lock")
    assert "\n" not in str(caught.value)
    assert len(said) == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_process_of_trl_finds_it_first_and_has_its_threads(tmp_path: Path) -> None:
    found = with_trl(tmp_path, threads=2)
    assert found["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2"
    assert found["HF_HUB_OFFLINE"] == "1"


@pytest.mark.real
@pytest.mark.timeout(180)
def test_the_engine_trains_every_completion_of_every_step(tmp_path: Path) -> None:
    record = bench.engine_run(folder=tmp_path, seed=0, steps=6)
    assert record["completions_per_s"] > 0
    assert 30 < record["tokens_per_completion"] <= 128

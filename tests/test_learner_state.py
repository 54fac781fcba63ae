"""What the learner keeps on disk: checkpoints and published weights; and what it refuses."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ConfigError, DataError, LearnerError
from engine.types import Batch
from learner.config import ConstantSchedule
from learner.megatron import MegatronLearner
from learner.sft import batch_of, sample_of
from tests.learner_models import PLAIN, VOCAB, exported, make_model, random_batch


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_restored_checkpoint_continues_bitwise(dtype: Any, folder: Path, tmp_path: Path, open_learner: Any) -> None:
    make_model(folder)
    config = msgspec.structs.replace(PLAIN, dtype=dtype, num_minibatches=2, schedule=ConstantSchedule(warmup_steps=9))
    learner = open_learner(config, weights="first")
    learner.step(random_batch(0))
    learner.save(tmp_path / "ckpt")
    learner.save(tmp_path / "ckpt")  # overwriting is a save like any other
    expected_report = learner.step(random_batch(1))
    expected = exported(learner)
    learner = open_learner(config, weights="second")
    assert learner.load(tmp_path / "ckpt") == learner.version == 1
    report = learner.step(random_batch(1))
    assert msgspec.structs.replace(report, duration_s=0) == msgspec.structs.replace(expected_report, duration_s=0)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported(learner).items())
    assert report.learning_rate == pytest.approx(1e-2 * 2 / 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt", "first", "model", "second"]


def test_a_torn_or_foreign_checkpoint_is_refused_and_changes_nothing(
    folder: Path, tmp_path: Path, open_learner: Any
) -> None:
    make_model(folder)
    learner = open_learner()
    learner.save(tmp_path / "ckpt")
    learner.step(random_batch(0))
    before = exported(learner)
    file = tmp_path / "ckpt" / "tp00-pp00-dp00.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match="torn"):
        learner.load(tmp_path / "ckpt")
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="torn"):
        learner.load(tmp_path / "ckpt")
    file.unlink()
    with pytest.raises(DataError, match="missing"):
        learner.load(tmp_path / "ckpt")
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        learner.load(tmp_path / "nowhere")
    assert learner.version == 1
    assert all(torch.equal(t, before[n]) for n, t in exported(learner).items())
    file.write_bytes(content)
    make_model(folder, num_hidden_layers=1)
    with pytest.raises(DataError, match="num_layers 2, this learner has 1"):
        open_learner().load(tmp_path / "ckpt")


def test_tensors_of_another_shape_are_refused_in_one_line_with_both_shapes(folder: Path, open_learner: Any) -> None:
    make_model(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"up_proj\.weight' has shape \(47, 32\), the model needs \(48, 32\)"):
        open_learner()
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"up_proj\.weight' is missing"):
        open_learner()
    make_model(folder)
    tensors = load_file(folder / "model.safetensors") | {"model.layers.0.extra": torch.zeros(1)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"layers\.0\.extra"):
        open_learner()
    make_model(folder)
    open_learner().step(random_batch(0))  # every refusal left the process fit for the next learner


def test_the_newest_two_published_versions_stay(folder: Path, tmp_path: Path, open_learner: Any) -> None:
    make_model(folder)
    learner = open_learner(msgspec.structs.replace(PLAIN, publish_dtype="bf16"))
    for _ in range(3):
        learner.publish()
        ref = learner.step(random_batch(0)) and learner.publish()
        assert ref.version == learner.version
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["v000002", "v000003"]
    assert {t.dtype for t in exported(learner).values()} == {torch.bfloat16}
    raw = msgspec.json.decode((tmp_path / "weights" / "v000003" / "config.json").read_bytes())
    assert (raw["torch_dtype"], raw["vocab_size"]) == ("bfloat16", VOCAB)


def test_an_export_carries_the_tokenizer(folder: Path, tmp_path: Path, open_learner: Any) -> None:
    make_model(folder)
    (folder / "tokenizer.json").write_text("{}")
    open_learner().export_hf(tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json"}


def test_a_layout_that_does_not_fit_the_processes_is_refused(folder: Path, tmp_path: Path) -> None:
    make_model(folder)
    config = msgspec.structs.replace(PLAIN, tensor_parallel=2)
    with pytest.raises(ConfigError, match="= 2, but got world_size=1"):
        MegatronLearner(config, model_path=folder, weights_dir=tmp_path)
    with pytest.raises(ConfigError, match="needs an init_method"):
        MegatronLearner(config, model_path=folder, weights_dir=tmp_path, world_size=2)


def test_two_learners_at_once_in_one_process_are_refused(folder: Path, tmp_path: Path, open_learner: Any) -> None:
    make_model(folder)
    open_learner()
    with pytest.raises(LearnerError, match="holds a distributed group already"):
        MegatronLearner(PLAIN, model_path=folder, weights_dir=tmp_path)


@pytest.mark.parametrize("is_distributed", [False, True], ids=["plain", "distributed"])
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_a_loss_that_is_not_finite_names_the_step_and_applies_nothing(
    num_minibatches: int, dtype: Any, is_distributed: bool, folder: Path, tmp_path: Path, open_learner: Any
) -> None:
    make_model(folder)
    changes = {"num_minibatches": num_minibatches, "dtype": dtype, "distributed_optimizer": is_distributed}
    learner = open_learner(msgspec.structs.replace(PLAIN, **changes))
    learner.step(random_batch(0))
    learner.save(tmp_path / "before")
    before = exported(learner)
    good, _, bad = random_batch(1).samples
    overflowing = msgspec.structs.replace(
        bad, advantages=tuple(np.where(a != 0, np.float32(3e38), a).astype(np.float32) for a in bad.advantages)
    )
    with pytest.raises(LearnerError, match=r"step 17.*nothing was applied"):
        learner.step(Batch(step=17, samples=(good, overflowing)))
    assert learner.version == 1
    assert all(torch.equal(t, before[n]) for n, t in exported(learner).items())
    learner.save(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes(), "masters, moments and counts as well"
    expected = learner.step(random_batch(1))
    assert math.isfinite(expected.loss)


def test_a_batch_without_trained_tokens_or_with_foreign_ones_is_refused(folder: Path, open_learner: Any) -> None:
    make_model(folder)
    learner = open_learner()
    with pytest.raises(LearnerError, match="step 3: the batch holds no trained token"):
        learner.step(Batch(step=3, samples=()))
    foreign = sample_of("t", token_ids=np.array([1, VOCAB], np.int32), is_trained=np.array([False, True]))
    with pytest.raises(LearnerError, match="vocabulary has 131"):
        learner.step(batch_of(0, [foreign]))

"""The learner on several processes gives the numbers of one: log-probabilities, gradients, weights, checkpoints.

This file is also the program of each rank: `python test_learner_parallel.py JOB RANK` where JOB is a folder.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.torch import load_file

from engine.config import decode
from engine.errors import DataError
from learner.config import LearnerConfig
from learner.megatron import MegatronLearner
from learner.sft import batch_of, sample_of

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 131  # odd: the vocabulary is padded wherever it is shared
DEADLINE_S = 100
BASE: dict[str, Any] = {
    "dtype": "float32",
    "micro_batch_tokens": 64,
    "lr": 1e-2,
    "loss": {"kind": "ppo", "eps_high": 0.28},
    "correction": {"kind": "decoupled"},
    "num_minibatches": 2,
}


def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, n).astype(np.int32) for n in (9, 33, 20, 1, 50, 12, 27)]


def traces() -> list[Any]:
    """Samples whose behaviour log-probabilities and advantages are anything but uniform."""
    rng = np.random.default_rng(1)
    samples = []
    for row, token_ids in enumerate(s for s in sequences() if len(s) > 4):
        mask = np.arange(len(token_ids)) > 3
        sample = sample_of(f"t{row}", token_ids=token_ids, is_trained=mask, row=row)
        prompt, sampled = sample.group.tree.nodes
        logprobs = rng.normal(-4.8, 0.5, mask.sum()).astype(np.float32)
        tree = msgspec.structs.replace(
            sample.group.tree, nodes=(prompt, msgspec.structs.replace(sampled, logprobs=logprobs))
        )
        group = msgspec.structs.replace(sample.group, tree=tree)
        advantages = (np.where(mask, rng.normal(), 0).astype(np.float32),)
        samples.append(msgspec.structs.replace(sample, group=group, advantages=advantages))
    return samples


def work(job: Path, rank: int) -> None:
    """One rank: score, train, save, train, load, train again; write what was seen."""
    spec = msgspec.json.decode((job / "job.json").read_bytes())
    config = decode(spec["config"], LearnerConfig, source="job")
    seen: dict[str, np.ndarray] = {}
    with MegatronLearner(
        config,
        model_path=job.parent / spec["model"],
        weights_dir=job / "weights",
        rank=rank,
        world_size=config.world_size,
        init_method=spec["init_method"],
        timeout_s=60,
    ) as learner:
        for i, values in enumerate(learner.logprobs(sequences())):
            seen[f"logprobs{i}"] = values
        reports = [learner.step(batch_of(0, traces()))]
        learner.save(job / "ckpt")
        reports.append(learner.step(batch_of(1, traces())))
        assert learner.load(job / "ckpt") == 1
        reports.append(learner.step(batch_of(1, traces())))
        learner.publish()
        if rank == 0:
            (job / "ckpt" / "manifest.json").write_bytes(b"{")
        learner.publish()  # a barrier
        try:
            learner.load(job / "ckpt")
            seen["refused"] = np.array(False)
        except DataError:
            seen["refused"] = np.array(True)
    for name in ("loss", "grad_norm", "entropy", "kl_rollout", "ratio_max", "clip_fraction", "num_trained_tokens"):
        seen[name] = np.array([getattr(r, name) for r in reports])
    np.savez(job / f"rank{rank}.npz", **seen)


def launch(job: Path, model: str, **changes: Any) -> list[dict[str, np.ndarray]]:
    """Run all ranks of a job and give back what each of them saw."""
    job.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = decode(BASE | changes, LearnerConfig, source="test")
    spec = {"config": BASE | changes, "model": model, "init_method": f"tcp://127.0.0.1:{port}"}
    (job / "job.json").write_bytes(msgspec.json.encode(spec))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(job), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(config.world_size)
    ]
    try:
        errors = [rank.communicate(timeout=DEADLINE_S)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [r.returncode for r in ranks] == [0] * len(ranks), "\n".join(errors)
    return [dict(np.load(job / f"rank{rank}.npz")) for rank in range(config.world_size)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tied and an untied model, and what one process makes of each."""
    from tests.learner_models import make_model, reference_logprobs  # loads transformers, which no rank needs

    folder = tmp_path_factory.mktemp("parallel")
    for name, kind, is_tied in (("tied", "qwen3", True), ("untied", "qwen2", False)):
        model = make_model(folder / name, kind, is_tied=is_tied)
        for i, token_ids in enumerate(sequences()):
            np.save(folder / f"{name}-{i}.npy", reference_logprobs(model, token_ids).detach().numpy())
        launch(folder / f"{name}-alone", name)
    return folder


@pytest.mark.real
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("tied", {"tensor_parallel": 2}),
        ("untied", {"tensor_parallel": 2, "sequence_parallel": True, "recompute": "full"}),
        ("tied", {"pipeline_parallel": 2}),
        ("untied", {"pipeline_parallel": 2}),
        ("tied", {"data_parallel": 2}),
        ("tied", {"tensor_parallel": 2, "pipeline_parallel": 2}),
    ],
    ids=["tp2", "tp2_sequence", "pp2_tied", "pp2", "dp2", "tp2_pp2"],
)
def test_several_processes_give_the_numbers_of_one(home: Path, model: str, changes: dict[str, Any]) -> None:
    job = home / "-".join([model, *changes])
    ranks = launch(job, model, **changes)
    alone = dict(np.load(home / f"{model}-alone" / "rank0.npz"))
    for seen in ranks:
        assert seen["refused"]
        for i, _ in enumerate(sequences()):
            expected = np.load(home / f"{model}-{i}.npy")
            np.testing.assert_allclose(seen[f"logprobs{i}"][1:], expected, atol=1e-5, rtol=0)
            np.testing.assert_allclose(seen[f"logprobs{i}"], alone[f"logprobs{i}"], atol=1e-5, rtol=0)
        for name in ("loss", "grad_norm", "entropy", "kl_rollout", "ratio_max", "clip_fraction"):
            np.testing.assert_allclose(seen[name], alone[name], rtol=1e-3, atol=1e-5, err_msg=name)
            np.testing.assert_array_equal(seen[name], ranks[0][name], err_msg=name)
            assert seen[name][1] == seen[name][2], "a restored checkpoint continues bitwise"
        np.testing.assert_allclose(seen["grad_norm"][0], alone["grad_norm"][0], rtol=1e-5)
        assert seen["num_trained_tokens"].tolist() == alone["num_trained_tokens"].tolist()
    ours = [load_file(f) for f in sorted((job / "weights" / "v000002").glob("*.safetensors"))]
    theirs = load_file(home / f"{model}-alone" / "weights" / "v000002" / "model.safetensors")
    merged = {name: tensor for part in ours for name, tensor in part.items()}
    assert sum(map(len, ours)) == len(merged)
    assert merged.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # AdamW's first updates have nearly the size of the rate for any gradient, so rounding shows in a few entries
        assert float((merged[name] - tensor).abs().mean()) < 1e-5, name


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))

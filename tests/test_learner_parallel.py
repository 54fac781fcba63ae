"""The learner on several processes gives the numbers of one: log-probabilities, gradients, weights, checkpoints.

This file is also the program of each rank: `python test_learner_parallel.py FOLDER RANK NAME ...` works through
the named jobs, one learner after the other, so that few processes are started for many layouts.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
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
from tests.learner_trees import make_sample

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 131  # odd: the vocabulary is padded wherever it is shared
DEADLINE_S = 150
BASE: dict[str, Any] = {
    "dtype": "float32",
    "micro_batch_tokens": 64,
    "lr": 1e-2,
    "adam_eps": 1e-3,  # far above rounding: an update is then a smooth function of the gradient, element by element
    "loss": {"kind": "ppo", "eps_high": 0.28},
    "correction": {"kind": "decoupled"},
    # what takes passes before the first update: over all replicas, and with the reference policy
    "rejections": [{"kind": "m2po", "tau": 0.3}],
    "kl": {"coef": 0.05},
    "num_minibatches": 2,
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One learner's life."""

    model: str
    layout: dict[str, Any] = field(default_factory=dict)
    resumes: tuple[str, ...] = ()
    """Jobs before it, whose checkpoints it continues as well."""

    @property
    def config(self) -> LearnerConfig:
        return decode(BASE | self.layout, LearnerConfig, source="job")


ROUNDED = {"dtype": "bf16", "rejections": []}
ZERO = {"data_parallel": 2, "distributed_optimizer": True}
JOBS = {
    "tied": Job(model="tied"),
    "untied": Job(model="untied"),
    "rounded": Job(model="tied", layout=ROUNDED),
    "tp2": Job(model="tied", layout={"tensor_parallel": 2}, resumes=("tied",)),
    "tp2_sequence": Job(
        model="untied",
        layout={"tensor_parallel": 2, "sequence_parallel": True, "recompute": "full"},
        resumes=("untied",),
    ),
    "pp2_tied": Job(model="tied", layout={"pipeline_parallel": 2}, resumes=("tp2",)),
    "pp2": Job(model="untied", layout={"pipeline_parallel": 2}, resumes=("tp2_sequence",)),
    "dp2": Job(model="tied", layout={"data_parallel": 2}, resumes=("pp2_tied",)),
    "zero": Job(model="tied", layout=ZERO, resumes=("tied", "tp2")),
    "rounded_zero": Job(model="tied", layout=ZERO | ROUNDED, resumes=("rounded",)),
    "tp2_pp2": Job(model="tied", layout={"tensor_parallel": 2, "pipeline_parallel": 2}, resumes=("zero", "pp2_tied")),
    "pp2_zero": Job(model="tied", layout=ZERO | {"pipeline_parallel": 2}, resumes=("tp2_pp2", "zero")),
    "tp2_zero": Job(
        model="untied",
        layout=ZERO | {"tensor_parallel": 2, "sequence_parallel": True, "recompute": "selective"},
        resumes=("pp2",),
    ),
    "tied_again": Job(model="tied", resumes=("tp2", "pp2_tied", "dp2", "zero", "tp2_pp2", "pp2_zero")),
    "untied_again": Job(model="untied", resumes=("tp2_sequence", "pp2", "tp2_zero")),
    "rounded_again": Job(model="tied", layout=ROUNDED, resumes=("rounded_zero",)),
}
LAUNCHES = (
    (1, ("tied", "untied", "rounded")),
    (2, ("tp2", "tp2_sequence", "pp2_tied", "pp2", "dp2", "zero", "rounded_zero")),
    (4, ("tp2_pp2", "pp2_zero", "tp2_zero")),
    (1, ("tied_again", "untied_again", "rounded_again")),
)
"""Processes, and the jobs they do."""
MEASURED = ("loss", "grad_norm", "entropy", "kl_rollout", "ratio_max", "clip_fraction", "num_trained_tokens")


def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, n).astype(np.int32) for n in (9, 33, 20, 1, 50, 12, 27)]


def traces() -> list[Any]:
    """Trajectories and trees whose behaviour log-probabilities and advantages are anything but uniform."""
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
    # trees: a fork behind a node of its own, and one behind an observation
    samples.append(make_sample(rng, [0, 1, 1, 0, 4, 4], [9, 12, 7, 6, 10, 15], vocab=VOCAB, row=len(samples)))
    samples.append(make_sample(rng, [0, 0, 2, 2, 2], [20, 5, 8, 8, 3], vocab=VOCAB, row=len(samples)))
    return samples


def work(folder: Path, rank: int, name: str) -> None:
    """One rank of one job: score, train, save, train, load, train again, continue others; write what was seen."""
    job, home = JOBS[name], folder / name
    seen: dict[str, np.ndarray] = {}
    with MegatronLearner(
        job.config,
        model_path=folder / job.model,
        weights_dir=home / "weights",
        rank=rank,
        world_size=job.config.world_size,
        init_method=f"file://{home / 'meeting'}",
        timeout_s=60,
    ) as learner:
        for i, values in enumerate(learner.logprobs(sequences())):
            seen[f"logprobs{i}"] = values
        reports = [learner.step(batch_of(0, traces()))]
        learner.save(home / "ckpt")
        reports.append(learner.step(batch_of(1, traces())))
        learner.publish()
        for saved in (name, *job.resumes):
            assert learner.load(folder / saved / "ckpt") == 1
            reports.append(learner.step(batch_of(1, traces())))
        learner.save(home / "torn")
        if rank == 0:
            (home / "torn" / "manifest.json").write_bytes(b"{")
        learner.publish()  # a barrier
        try:
            learner.load(home / "torn")
            seen["refused"] = np.array(False)
        except DataError:
            seen["refused"] = np.array(True)
    seen |= {name: np.array([getattr(r, name) for r in reports]) for name in MEASURED}
    np.savez(home / f"rank{rank}.npz", **seen)


def launch(folder: Path, num_ranks: int, names: tuple[str, ...]) -> None:
    """Run all ranks to their end."""
    for name in names:
        (folder / name).mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(folder), str(rank), *names],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    try:
        errors = [rank.communicate(timeout=DEADLINE_S)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [r.returncode for r in ranks] == [0] * len(ranks), "\n".join(errors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tied and an untied model are, and what became of every job."""
    from tests.learner_models import make_model, reference_logprobs  # loads transformers, which no rank needs

    folder = tmp_path_factory.mktemp("parallel")
    for name, kind, is_tied in (("tied", "qwen3", True), ("untied", "qwen2", False)):
        model = make_model(folder / name, kind, is_tied=is_tied)
        for i, token_ids in enumerate(sequences()):
            np.save(folder / f"{name}-{i}.npy", reference_logprobs(model, token_ids).detach().numpy())
    for num_ranks, names in LAUNCHES:
        launch(folder, num_ranks, names)
    return folder


def ranks_of(folder: Path, name: str) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(folder / name / f"rank{rank}.npz")) for rank in range(JOBS[name].config.world_size)]


def alone_of(folder: Path, name: str) -> dict[str, np.ndarray]:
    """What one process saw of the same model."""
    job = JOBS[name]
    return ranks_of(folder, "rounded" if job.config.dtype == "bf16" else job.model)[0]


def weights_of(folder: Path, name: str) -> dict[str, Any]:
    """What a job published behind its second step."""
    files = sorted((folder / name / "weights" / "v000002").glob("*.safetensors"))
    parts = [load_file(file) for file in files]
    merged = {key: tensor for part in parts for key, tensor in part.items()}
    assert sum(map(len, parts)) == len(merged)
    return merged


EXACT = [name for name, job in JOBS.items() if job.config.dtype == "float32" and name not in ("tied", "untied")]
pytestmark = [pytest.mark.real, pytest.mark.timeout(500)]


@pytest.mark.parametrize("name", EXACT)
def test_several_processes_give_the_numbers_of_one(folder: Path, name: str) -> None:
    ranks, alone = ranks_of(folder, name), alone_of(folder, name)
    for seen in ranks:
        for i, _ in enumerate(sequences()):
            expected = np.load(folder / f"{JOBS[name].model}-{i}.npy")
            np.testing.assert_allclose(seen[f"logprobs{i}"][1:], expected, atol=1e-5, rtol=0)
            np.testing.assert_allclose(seen[f"logprobs{i}"], alone[f"logprobs{i}"], atol=1e-5, rtol=0)
        for key in MEASURED:
            np.testing.assert_allclose(seen[key][:2], alone[key][:2], rtol=1e-5, atol=1e-6, err_msg=key)
            np.testing.assert_array_equal(seen[key], ranks[0][key], err_msg=key)
        np.testing.assert_allclose(seen["grad_norm"][:2], alone["grad_norm"][:2], rtol=2e-6)
    theirs = weights_of(folder, JOBS[name].model)
    ours = weights_of(folder, name)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert float((ours[key] - tensor).abs().max()) < 2e-6, key


@pytest.mark.parametrize("name", ["rounded_zero", "rounded_again"])
def test_with_bf16_weights_masters_and_gradients_stay_float32(folder: Path, name: str) -> None:
    alone = alone_of(folder, name)
    for seen in ranks_of(folder, name):
        np.testing.assert_allclose(
            seen["grad_norm"], alone["grad_norm"][0:2].tolist() + [alone["grad_norm"][1]] * 2, rtol=2e-2
        )


@pytest.mark.parametrize("name", JOBS)
def test_a_checkpoint_of_any_layout_is_continued_and_one_of_the_same_bitwise(folder: Path, name: str) -> None:
    for seen in ranks_of(folder, name):
        assert seen["refused"], "a torn one is refused by every rank"
        for key in MEASURED:
            assert seen[key][1] == seen[key][2], "a restored checkpoint continues bitwise"
            for number, other in enumerate(JOBS[name].resumes):
                theirs = ranks_of(folder, other)[0][key][1]
                tolerance = {"rtol": 1e-5, "atol": 1e-6} if JOBS[name].config.dtype == "float32" else {"rtol": 3e-2}
                np.testing.assert_allclose(seen[key][3 + number], theirs, **tolerance, err_msg=f"{key} from {other}")


if __name__ == "__main__":
    for each in sys.argv[3:]:
        work(Path(sys.argv[1]), int(sys.argv[2]), each)

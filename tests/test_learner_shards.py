"""What is written in one layout is read in another: pieces, files, buckets, and layouts that are none."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from engine.errors import ConfigError, DataError
from engine.inference.shape import ModelShape
from learner.config import LearnerConfig
from learner.layout import check_layout
from learner.megatron import MegatronLearner
from learner.storage.buckets import plan_buckets
from learner.storage.shards import ShardReader, piece_key, whole_names
from learner.storage.tensor_file import TensorSpec, write_tensors
from learner.storage.weights import cut, stage_mappings
from tests.learner_models import PLAIN, exported, make_model, random_batch

SHAPE = ModelShape(
    kind="qwen2",
    vocab_size=13,
    hidden_size=16,
    intermediate_size=24,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=2,
    max_positions=64,
    has_qkv_bias=True,
)


def whole_tensors(shape: ModelShape) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    names = {n: s for m in stage_mappings(shape) for n, s in zip(m.tensors, m.shapes, strict=True)}
    return {name: torch.randn(extents) for name, extents in names.items()}


def write_shards(folder: Path, *, tp_size: int, num_replicas: int, omit: str = "") -> list[tuple[Path, int]]:
    """What `tp_size` ranks of so many replicas with a distributed optimiser write, cut at odd places."""
    rng = np.random.default_rng(tp_size)
    whole, names = whole_tensors(SHAPE), whole_names(SHAPE)
    files: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for mapping in stage_mappings(SHAPE):
        for tp_rank in range(1 if mapping.rule == "whole" else tp_size):
            shard = cut(mapping, [whole[n] for n in mapping.tensors], shape=SHAPE, rank=tp_rank, size=tp_size).flatten()
            cuts = np.sort(rng.integers(0, len(shard), num_replicas - 1)).tolist()
            for replica, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(shard)], strict=True)):
                key = piece_key("exp_avg", names[mapping.tensors], start)
                if stop > start and key != omit:
                    files.setdefault((tp_rank, replica), {})[key] = shard[start:stop]
    written: list[tuple[Path, int]] = []
    for (tp_rank, replica), pieces in files.items():
        path = folder / f"{tp_rank}-{replica}.safetensors"
        write_tensors(
            path, {k: TensorSpec(dtype=t.dtype, shape=tuple(t.shape)) for k, t in pieces.items()}, pieces.values()
        )
        written.append((path, tp_rank))
    return written


@pytest.mark.parametrize("num_replicas", [1, 3])
@pytest.mark.parametrize("theirs", [1, 2, 4])
@pytest.mark.parametrize("ours", [1, 2, 4])
def test_shards_of_any_layout_are_read_from_pieces_of_any_other(
    ours: int, theirs: int, num_replicas: int, tmp_path: Path
) -> None:
    whole = whole_tensors(SHAPE)
    files = write_shards(tmp_path, tp_size=theirs, num_replicas=num_replicas)
    with ShardReader(files, shape=SHAPE, tp_size=theirs) as reader:
        for stage in range(2):
            for mapping in stage_mappings(SHAPE, stage=stage, num_stages=2):
                reader.check(mapping, "exp_avg")
                for rank in range(ours):
                    expected = cut(mapping, [whole[n] for n in mapping.tensors], shape=SHAPE, rank=rank, size=ours)
                    assert torch.equal(reader.shard(mapping, "exp_avg", tp_rank=rank, tp_size=ours), expected)


def test_a_piece_that_is_missing_is_named(tmp_path: Path) -> None:
    files = write_shards(tmp_path, tp_size=2, num_replicas=1, omit="exp_avg/decoder.layers.3.mlp.linear_fc2.weight/0")
    with ShardReader(files, shape=SHAPE, tp_size=2) as reader:
        mapping = stage_mappings(SHAPE, stage=1, num_stages=2)[-4]
        assert mapping.parameter == "decoder.layers.1.mlp.linear_fc2.weight"
        with pytest.raises(DataError, match=r"exp_avg of decoder\.layers\.3\.mlp\.linear_fc2.*shard 0 of 2: 0 of 192"):
            reader.check(mapping, "exp_avg")


def test_a_tied_output_layer_is_read_from_the_embedding(tmp_path: Path) -> None:
    tied = msgspec.structs.replace(SHAPE, is_tied=True)
    last = stage_mappings(tied, stage=1, num_stages=2)[-1]
    assert (last.parameter, last.is_exported) == ("output_layer.weight", False)
    assert whole_names(tied)[last.tensors] == "embedding.word_embeddings.weight"


def test_a_file_is_written_while_its_tensors_are_made(tmp_path: Path) -> None:
    file, count = tmp_path / "file.safetensors", 8
    values = [torch.arange(600, dtype=torch.bfloat16).view(20, 30) * i for i in range(count)]
    sizes: list[int] = []

    def tensors() -> Iterator[torch.Tensor]:
        for value in values:
            yield value
            sizes.append(file.stat().st_size)

    specs = {f"t{i}": TensorSpec(dtype=torch.bfloat16, shape=(20, 30)) for i in range(count)}
    size = write_tensors(file, specs, tensors())
    assert [size - s for s in sizes] == [1200 * left for left in range(count - 1, -1, -1)], "nothing is held back"
    back = load_file(file)
    assert all(torch.equal(back[f"t{i}"], value) for i, value in enumerate(values))


@given(limit=st.integers(1, 5000), num_stages=st.sampled_from([1, 2, 4]), tp_size=st.sampled_from([1, 2, 4]))
def test_buckets_hold_every_tensor_once_and_are_bounded(limit: int, num_stages: int, tp_size: int) -> None:
    buckets = plan_buckets(SHAPE, num_stages=num_stages, tp_size=tp_size, dtype=torch.bfloat16, limit=limit)
    names = [name for bucket in buckets for name in bucket.specs(torch.bfloat16)]
    assert sorted(names) == sorted(whole_tensors(SHAPE))
    for bucket in buckets:
        num_bytes = sum(spec.num_bytes for spec in bucket.specs(torch.bfloat16).values())
        assert num_bytes <= limit or len(bucket.mappings) == 1
        assert bucket.writer < tp_size
    for stage in range(num_stages):
        own = [bucket.writer for bucket in buckets if bucket.stage == stage]
        assert own == [number % tp_size for number in range(len(own))], "ranks take turns"


def test_large_weights_are_published_in_several_files_with_an_index(
    folder: Path, tmp_path: Path, open_learner: Any
) -> None:
    model = make_model(folder, hidden_size=256, intermediate_size=1024)
    learner = open_learner(msgspec.structs.replace(PLAIN, publish_bucket_mib=1))
    published = Path(learner.publish().path)
    files = sorted(published.glob("*.safetensors"))
    index = msgspec.json.decode((published / "model.safetensors.index.json").read_bytes())
    assert len(files) > 3
    assert {file.name for file in files} == set(index["weight_map"].values())
    merged = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert all(torch.equal(merged[name], parameter) for name, parameter in model.named_parameters())
    for file in files:
        assert file.stat().st_size <= 2**20 + 4096 or len(load_file(file)) <= 2


def test_a_distributed_optimiser_of_one_replica_is_the_plain_one_bitwise(
    folder: Path, tmp_path: Path, open_learner: Any
) -> None:
    make_model(folder, is_tied=True)
    results = []
    for is_distributed in (False, True):
        config = msgspec.structs.replace(PLAIN, distributed_optimizer=is_distributed, dtype="bf16", num_minibatches=2)
        learner = open_learner(config, weights=f"w{is_distributed}")
        if results:
            learner.load(tmp_path / "ckpt")
        else:
            learner.step(random_batch(0))
            learner.save(tmp_path / "ckpt")
        report = learner.step(random_batch(1))
        results.append((msgspec.structs.replace(report, duration_s=0), exported(learner)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tensor_parallel": 8}, r"4 key-value heads do not divide into 8 parts - at \$\.learner\.tensor_parallel"),
        ({"pipeline_parallel": 3}, "4 layers do not divide into 3 parts"),
        ({"sequence_parallel": True}, r"tensor_parallel is 1 - at \$\.learner\.sequence_parallel"),
        ({"distributed_optimizer": True, "dtype": "float64"}, r"at \$\.learner\.distributed_optimizer"),
    ],
    ids=["heads", "layers", "sequence", "float64"],
)
def test_a_layout_that_does_not_divide_is_refused_in_one_line(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_layout(SHAPE, LearnerConfig(**layout))


def test_such_a_layout_is_refused_before_any_group_is_made(folder: Path, tmp_path: Path) -> None:
    make_model(folder)
    config = msgspec.structs.replace(PLAIN, tensor_parallel=4)
    with pytest.raises(ConfigError, match="2 key-value heads do not divide into 4 parts"):
        MegatronLearner(
            config,
            model_path=folder,
            weights_dir=tmp_path,
            world_size=4,
            init_method="tcp://127.0.0.1:1",  # where nobody will answer
            timeout_s=1,
        )


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory rises at most while it works."""
    status = Path("/proc/self/status")

    def read(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


def test_publishing_takes_a_bucket_beside_the_model_and_not_another_model(folder: Path, open_learner: Any) -> None:
    make_model(folder, hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    learner = open_learner(msgspec.structs.replace(PLAIN, publish_dtype="bf16", publish_bucket_mib=4))
    learner.publish()  # what is allocated once
    published = sum(file.stat().st_size for file in Path(learner.publish().path).glob("*.safetensors"))
    assert published > 48 * 2**20
    assert peak_growth(learner.publish) < 12 * 2**20

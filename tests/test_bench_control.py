"""`arpo bench control`: what it measures is told by its configuration, and the SGLang it measures with is one."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from actors.bench import control_bench
from actors.bench.control import control
from actors.bench.control_config import load_control
from actors.bench.harness import report, run_bench
from actors.bench.sglang_stand_in import stand_in, write_model
from actors.bench.workload import Law, Workload
from engine.errors import ConfigError
from engine.inference.sglang import SglangGenerator
from engine.inference.sglang_config import SglangConfig
from engine.types import GenerateRequest, SamplingParams, WeightRef

TINY = (
    "concurrent_paths=32",
    "law.num_prompts=8",
    "law.latency_max_s=1.0",
    "http_prompts=2",
    "large.num_generators=4",
    "large.num_paths=160",
)


def test_keys_of_its_configuration_stand_behind_its_name(tmp_path: Path) -> None:
    file = tmp_path / "slow.toml"
    file.write_text("[law]\nlatency_median_s = 3.0\n[large]\nslots = 2\n")
    found = load_control([str(file), "large.slots=5"], is_quick=True)
    assert (found.law.latency_median_s, found.large.slots) == (3.0, 5)
    assert found.large.num_paths < load_control([], is_quick=False).large.num_paths == 100_000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("law.nothing=1", r"^bench control: Object contains unknown field `nothing` - at `\$\.law`$"),
        ("law.num_prompts=3", r"^bench control: 8 batches need a prompt each, got 3 - at \$\.law\.num_prompts"),
        ("large.num_paths=10", r"^bench control: 10 batches need 16 paths each, got 10 - at \$\.large\.num_paths"),
    ],
)
def test_a_wrong_key_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_control([override], is_quick=False)


def test_other_benches_take_no_keys() -> None:
    with pytest.raises(ConfigError, match=r"^bench async: only `control` takes keys, got 'law\.token_s=1'$"):
        run_bench("async", is_quick=True, on_progress=lambda line: None, overrides=["law.token_s=1"])


def test_a_run_of_the_control_plane_counts_what_it_does(tmp_path: Path) -> None:
    """With 8 prompts of 16 paths each; a path makes 2.5 calls on average, and its branches inherit some of them."""
    law = Law(num_prompts=8, latency_max_s=1.0)
    record = control(law, num_generators=2, num_batches=4, folder=tmp_path, seed=0)
    assert 8 * 16 <= record["segments"] <= 8 * 16 * 5
    assert 0 < record["forks"] <= 8 * 8
    assert 0.0 <= record["staleness"] <= 1.0
    assert 0 < record["slots_busy"] < 1
    assert record["cpu_s"] > 0


@pytest.mark.real
def test_all_arms_come_to_figures(tmp_path: Path) -> None:
    found = report("control", control_bench.benches(tmp_path, is_quick=True, overrides=TINY), on_progress=print)
    assert set(found.figures) == {
        "us_per_segment",
        "us_per_segment_http",
        "rss_mib",
        "utilisation",
        "staleness",
        "forks",
        "large_us",
        "large_wall_s",
    }
    assert all(value > 0 for name, value in found.figures.items() if name != "staleness")


@pytest.mark.real
@pytest.mark.timeout(60)
def test_the_stand_in_says_what_the_law_says_in_the_words_of_sglang(tmp_path: Path) -> None:
    law = Law(token_s=0.0001)
    workload = Workload(law, seed=0, folder=tmp_path)
    model = write_model(tmp_path / "served", vocab_size=workload.vocab_size)
    request = GenerateRequest(
        request_id="r",
        token_ids=np.array([1, 2, 3], np.int32),
        sampling=SamplingParams(max_new_tokens=4096, seed=7),
        stream_interval=16,
    )

    async def main(url: str) -> None:
        async with SglangGenerator(url, SglangConfig(), model_path=model) as generator:
            chunks = [chunk async for chunk in generator.generate(request)]
            said = np.concatenate([chunk.token_ids for chunk in chunks])
            assert said.tolist() == list(workload.script(request).token_ids)
            # A server sends its first token at once, and then so many an event.
            assert [chunk.token_ids.size for chunk in chunks[:-1]] == [17, *[16] * (len(chunks) - 2)]
            await generator.update_weights(WeightRef(version=3, path="nowhere"), mode="retract")
            assert {int(v) async for chunk in generator.generate(request) for v in chunk.versions} == {3}

    with stand_in(law, seed=0, folder=tmp_path) as url:
        asyncio.run(main(url))

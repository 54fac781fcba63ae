"""The decode arms: both decode what they were asked to, and say how fast."""

from pathlib import Path

import pytest

from actors.bench.decode import ArmName, make_bench_model, make_bench_prompts, run_arm


@pytest.mark.parametrize("name", ["embedded", "transformers"])
def test_an_arm_samples_every_token_it_was_asked_for(name: ArmName, tmp_path: Path) -> None:
    path = make_bench_model(tmp_path)
    figures = run_arm(name, model_path=path, prompts=make_bench_prompts(count=3, length=8), max_new_tokens=9, seed=1)
    assert figures["num_tokens"] == 27
    assert figures["tokens_per_s"] == pytest.approx(27 / figures["wall_s"])
    assert set(figures) == {"tokens_per_s", "wall_s", "cpu_s", "num_tokens", "ms_per_step"}

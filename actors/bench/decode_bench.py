"""`arpo bench decode`: tokens a second of the embedded engine, and whether it computes a prefix twice.

| figure                      | what it is                                                                           |
|-----------------------------|--------------------------------------------------------------------------------------|
| `speedup_vs_transformers`   | tokens a second by those of `transformers.generate` on the same batch (see `decode`) |
| `tokens_per_s`              | of the embedded engine                                                               |
| `transformers_tokens_per_s` | of `transformers.generate`                                                           |
| `fork_prefill_excess`       | tokens computed for a fork and tool turns beyond the new ones (see `prefill`): 0     |
"""

from collections.abc import Sequence
from pathlib import Path

from actors.bench.bench import Bench, Record, Records, median_of, median_ratio
from actors.bench.decode import ArmName, make_bench_model, make_bench_prompts, run_arm
from actors.bench.prefill import count_prefill


def benches(folder: Path, *, is_quick: bool) -> Sequence[Bench]:
    """One batch of 32 prompts by both, and the count."""
    model_path = make_bench_model(folder / "model")
    max_new_tokens = 64 if is_quick else 256

    def decode(name: ArmName, seed: int) -> Record:
        prompts = make_bench_prompts(seed=seed)
        return run_arm(name, model_path=model_path, prompts=prompts, max_new_tokens=max_new_tokens, seed=seed)

    return (
        Bench(
            name="decode",
            arms={
                "embedded": lambda seed: decode("embedded", seed),
                "transformers": lambda seed: decode("transformers", seed),
                "prefill": lambda seed: count_prefill(model_path=model_path, seed=seed),
            },
            repetitions=3 if is_quick else 5,
            figures=_figures,
        ),
    )


def _figures(records: Records) -> dict[str, float]:
    return {
        "speedup_vs_transformers": median_ratio(records, "embedded", "transformers", of="tokens_per_s"),
        "tokens_per_s": median_of(records, "embedded", "tokens_per_s"),
        "transformers_tokens_per_s": median_of(records, "transformers", "tokens_per_s"),
        "fork_prefill_excess": max(record["excess"] for record in records["prefill"]),
    }

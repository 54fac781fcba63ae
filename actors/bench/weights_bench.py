"""`arpo bench weights`: what new weights cost between the learner's step and the generator that samples with them.

| figure              | what it is                                                                                  |
|---------------------|---------------------------------------------------------------------------------------------|
| `publish_s`         | from the call to whole Hugging Face tensors in shared memory, by one rank (see `publishing`) |
| `gib_per_s`         | the model's bytes by that                                                                   |
| `takeover_s`        | from there to an embedded generator whose next token the new weights sample                 |
| `fraction_of_bound` | the time of `safetensors.save_file` on the same tensors, by `publish_s`                     |
| `publish_s_tp2`     | as `publish_s`, gathered from two tensor-parallel ranks                                     |
| `publish_s_pp2`     | as `publish_s`, by two pipeline stages                                                      |
"""

from collections.abc import Sequence
from pathlib import Path

from actors.bench.bench import Bench, Records, median_of, median_ratio
from actors.bench.publishing import Publishing


def benches(folder: Path, *, is_quick: bool) -> Sequence[Bench]:
    """A model of 260 MiB (quick: 130), in three layouts, against the bound."""
    arms = Publishing(folder, hidden_size=512 if is_quick else 768, rounds=3 if is_quick else 5)
    return (
        Bench(
            name="weights",
            arms={
                "tp1": lambda seed: arms.publish(),
                "tp2": lambda seed: arms.publish(tensor_parallel=2),
                "pp2": lambda seed: arms.publish(pipeline_parallel=2),
                "save_file": lambda seed: arms.save_file(),
            },
            repetitions=1 if is_quick else 5,
            figures=figures,
        ),
    )


def figures(records: Records) -> dict[str, float]:
    """Medians, and the ratio of what ran side by side."""
    return {
        "publish_s": median_of(records, "tp1", "publish_s"),
        "gib_per_s": median_of(records, "tp1", "gib_per_s"),
        "takeover_s": median_of(records, "tp1", "takeover_s"),
        "fraction_of_bound": median_ratio(records, "save_file", "tp1", of="publish_s"),
        "publish_s_tp2": median_of(records, "tp2", "publish_s"),
        "publish_s_pp2": median_of(records, "pp2", "publish_s"),
    }

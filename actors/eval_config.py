"""The `[eval]` section: which questions a policy is asked, how it is sampled, and what its answers are compared by."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from engine.config import NonNegativeFloat, Positive, Section
from engine.dataset import DataConfig
from tools.judge import JudgeConfig

Metric = Literal["f1", "em", "contains", "reward_f1", "reward_em", "math", "judge", "success"]
"""What one answer is worth: `tools.qa_scores`, `tools.math_equal`, `tools.judge`, or the run's own reward."""


class Greedy(Section, frozen=True, tag="greedy", tag_field="kind"):
    """The likeliest token, always: what training runs are measured by."""

    @property
    def sampling(self) -> dict[str, float | int]:
        """Fields of a `SamplingConfig`."""
        return {"temperature": 0.0, "top_p": 1.0, "top_k": -1}


class PaperSampling(Section, frozen=True, tag="paper", tag_field="kind"):
    """ARPO's evaluation (2507.19849): temperature 0.6, top-p 0.95, and the released code's top-k.

    That code has a repetition penalty of 1.1 besides, which no generator here applies.
    """

    temperature: NonNegativeFloat = 0.6
    """Divides the logits."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    """Sample from the fewest tokens that hold this share."""
    top_k: int = 20
    """Sample from so many of the likeliest tokens; -1 is all."""

    @property
    def sampling(self) -> dict[str, float | int]:
        """Fields of a `SamplingConfig`."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


EvalSampling = Greedy | PaperSampling


class EvalConfig(Section, frozen=True, kw_only=True):
    """How the policy is measured."""

    data: DataConfig
    """What is reported, before and after training and by `arpo eval`."""
    validation: DataConfig | None = None
    """Questions by which a training run chooses `best/`; unset, it is chosen by `data`, which then is no test set."""
    samples: Positive = 1
    """Trajectories a question; with more than one, pass@k is reported."""
    sampling: EvalSampling = Greedy()
    """How answers are sampled when the policy is measured."""
    concurrency: Positive = 64
    """Questions in flight."""
    control: bool = False
    """After RL, go on with the last stage of the cold start instead, from the model RL began with and for as long as
    RL took, and measure what comes of it in the same way."""
    judge: JudgeConfig | None = None
    """A model that says whether an answer is right; only `arpo eval` asks it."""
    metric: dict[str, Metric] = msgspec.field(default_factory=dict[str, Metric])
    """What the answers of a set are measured by, by the set's name: `eval.metric.aime24=judge`. Unset is `math` for
    mathematics, `f1` for the sets for which the paper reports it, and for others `judge` where there is one."""

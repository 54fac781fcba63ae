"""The advantage estimators by name, and the shaping of rewards by length.

Formulas and sources are with the functions in `advantage` and `batch_credit`. DAPO is GRPO's estimator under its own
name: what else it is made of are choices of their own (`ppo` with eps_high 0.28, `token_mean`, `overlong`; groups
without a learning signal are always refused and replaced, which is its dynamic sampling).
"""

from typing import Annotated

from msgspec import Meta

from engine.config import NonNegativeFloat, Positive, PositiveFloat, Section


class Grpo(Section, tag="grpo", tag_field="kind"):
    """Group-relative advantages: every sampled token of a trajectory has the same."""

    normalise_std: bool = True
    """Divide by the group's standard deviation."""
    eps: NonNegativeFloat = 1e-6
    """Added to the standard deviation."""


class ArpoSoft(Grpo, tag="arpo_soft", tag_field="kind"):
    """ARPO's default: GRPO on the leaves; a shared token meets the mean through its equal ratios."""


class ArpoHard(Grpo, tag="arpo_hard", tag_field="kind"):
    """ARPO's other one: a shared token has the mean advantage of the trajectories that share it."""


class Dapo(Grpo, tag="dapo", tag_field="kind"):
    """GRPO's; see above for the other parts of DAPO."""


class DrGrpo(Section, tag="dr_grpo", tag_field="kind"):
    """GRPO without the division by the standard deviation, which favours prompts of nearly equal rewards."""


class Rloo(Section, tag="rloo", tag_field="kind"):
    """Leave-one-out: each trajectory against the mean of the others."""


class PlainReward(Section, tag="reward", tag_field="kind"):
    """REINFORCE: the reward as it is, without a baseline; the gradient's mean is then the true one."""


class ReinforcePp(Section, tag="reinforce_pp", tag_field="kind"):
    """REINFORCE++: rewards, whitened over the tokens of the whole batch; needs no contrast inside a group."""

    eps: NonNegativeFloat = 1e-6
    """Added to the standard deviation."""


class ReinforcePpBaseline(Section, tag="reinforce_pp_baseline", tag_field="kind"):
    """REINFORCE++-baseline: rewards against the group's mean, then whitened over the tokens of the whole batch."""

    eps: NonNegativeFloat = 1e-6
    """Added to the standard deviation."""


class TreeGrpo(Section, tag="tree_grpo", tag_field="kind"):
    """Tree-GRPO: z-scores among all trajectories of the prompt plus z-scores among those of one initial path."""

    eps: NonNegativeFloat = 1e-6
    """Added to both standard deviations."""


class Aepo(Section, tag="aepo", tag_field="kind"):
    """AEPO: GRPO's advantage, scaled up where the token was sampled with a high entropy for the batch."""

    entropy_weight: NonNegativeFloat = 0.2
    """a of the paper; the value is that of its code."""
    eps: NonNegativeFloat = 1e-6
    """Added to the standard deviations."""


AdvantageConfig = (
    ArpoSoft
    | ArpoHard
    | Grpo
    | Dapo
    | DrGrpo
    | Rloo
    | PlainReward
    | ReinforcePp
    | ReinforcePpBaseline
    | TreeGrpo
    | Aepo
)


class Overlong(Section):
    """Soft overlong punishment (DAPO 2503.14476, Eq 13): what a response near the limit L loses of its reward."""

    limit: Positive | None = None
    """L in tokens of the path behind its prompt, tool results included; unset is the run's
    `rollout.sampling.max_response_tokens`, where a path is cut."""
    buffer: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Share of L, at its end, along which the penalty grows from 0 to `factor`; DAPO's 4,096 of 20,480 tokens."""
    factor: PositiveFloat = 1.0
    """Penalty of a response that has L tokens."""

"""Off-policy corrections by name: a weight in front of each token's loss, and rejections of tokens or trajectories.

Symbols: b behaviour (who sampled), p proximal (the learner's weights at the start of the step), th current,
rho = p / b. Weights and rejections look at rho, which no update of the step changes, and carry no gradient. A rejected
token has weight 0 and still counts in the denominator of the normalisation.
"""

from typing import Literal

from engine.config import PositiveFloat, Section
from engine.errors import ConfigError


class NoCorrection(Section, tag="none", tag_field="kind"):
    """Bypass: the ratio is th / b, and nothing else corrects for b."""


class Decoupled(Section, tag="decoupled", tag_field="kind"):
    """Decoupled PPO (Hilton 2110.00641): ratio th / p, and the weight w = rho, detached, in front of the loss."""

    cap: PositiveFloat | None = 5.0
    """Bound of w; unset leaves it unbounded."""
    mode: Literal["clip", "mask"] = "mask"
    """Beyond the cap: `clip` trains with w = cap, `mask` (AReaL's choice) does not train the token."""


class TruncatedIs(Section, tag="truncated_is", tag_field="kind"):
    """Truncated importance sampling: ratio th / p, and the weight min(w, cap), detached."""

    level: Literal["token", "sequence"] = "token"
    """`token`: w is the token's own rho. `sequence`: the product of rho over the trajectory, for each of its tokens."""
    cap: PositiveFloat = 2.0
    """2 by token; by sequence 2 to 10 are common."""


class IcePop(Section, tag="icepop", tag_field="kind"):
    """IcePop, also masked importance sampling: ratio th / p, weight rho where low <= rho <= high, and 0 elsewhere."""

    low: PositiveFloat = 0.5
    """Smallest rho that is trained."""
    high: PositiveFloat = 5.0
    """Largest rho that is trained."""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)


class ExactIs(Section, tag="exact_is", tag_field="kind"):
    """The importance product itself, without a bound of its own: ratio th / p, and the product of rho as the weight."""

    over: Literal["trajectory", "prefix"] = "trajectory"
    """`trajectory`: all its trained tokens, for each of them; unbiased, because the reward hangs on all of them.
    `prefix`: those up to the token itself; it varies less, and credits the token with how b, not p, goes on."""


CorrectionConfig = NoCorrection | Decoupled | TruncatedIs | IcePop | ExactIs


class SequenceProduct(Section, tag="sequence_product", tag_field="kind"):
    """Keep a trajectory where the product of rho over its trained tokens lies in [low, high] (Seq-MIS)."""

    low: PositiveFloat = 0.5
    """Smallest product that is kept."""
    high: PositiveFloat = 2.0
    """Largest product that is kept."""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)


class SequenceGeometric(Section, tag="sequence_geometric", tag_field="kind"):
    """Keep a trajectory where the geometric mean of rho lies in [low, high] (Geo-RS; seq-mask-TIS with a weight)."""

    low: PositiveFloat = 0.999
    """Smallest geometric mean that is kept."""
    high: PositiveFloat = 1.001
    """verl's range; SkyRL uses 0.99 to 1.01, OpenRLHF 0.999 to 1.002."""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)


class SequenceK3(Section, tag="sequence_k3", tag_field="kind"):
    """Keep a trajectory where the mean of rho - 1 - log rho, an estimate of KL(b || p), is at most `limit` (K3-RS)."""

    limit: PositiveFloat = 0.01
    """In nats a token."""


class Veto(Section, tag="veto", tag_field="kind"):
    """Drop a trajectory with any token whose rho lies outside [low, high]."""

    low: PositiveFloat = 1e-4
    """Smallest rho of a kept trajectory."""
    high: PositiveFloat = 100.0
    """Largest rho of a kept trajectory."""

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)


class M2po(Section, tag="m2po", tag_field="kind"):
    """M2PO (2510.01161): drop the tokens of the mini-batch with the largest (log rho)^2 until the mean of the others
    is at most `tau`."""

    tau: PositiveFloat = 0.04
    """Largest mean of (log rho)^2."""


RejectionConfig = SequenceProduct | SequenceGeometric | SequenceK3 | Veto | M2po


def _check_range(low: float, high: float) -> None:
    if low >= high:
        raise ConfigError(f"expected low < high, got {low=}, {high=}")

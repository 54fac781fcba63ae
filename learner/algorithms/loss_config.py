"""The policy losses by name, and what may be added to them.

Symbols: A advantage, th the current probability of a token, r = th / reference, where the correction says what the
reference is, sg(x) the value of x without its gradient.
"""

from typing import Annotated, Literal

from msgspec import Meta

from engine.config import Fraction, PositiveFloat, Section

DualClip = Annotated[float, Meta(gt=1)]


class Ppo(Section, tag="ppo", tag_field="kind"):
    """Clipped policy gradient: maximise min(r A, clip(r, 1 - eps_low, 1 + eps_high) A); Schulman et al. 2017."""

    eps_low: Fraction = 0.2
    """The ratio counts as 1 - eps_low at least."""
    eps_high: PositiveFloat = 0.2
    """Above eps_low it is DAPO's clip-higher (2503.14476), which uses 0.28."""
    dual_clip: DualClip | None = None
    """Where A < 0, the objective is bounded from below by `dual_clip * A`; the official ARPO code uses 3."""


class AepoClip(Section, tag="aepo", tag_field="kind"):
    """AEPO's stop-gradient clip (2510.14545): the values of PPO, but a token above the clip keeps a bounded gradient.

    Maximise min(r A, clip(r, 1 - eps_low, (1 + eps_high) r / sg(r)) A): where PPO would drop a token that has become
    likelier and has A > 0, its gradient is (1 + eps_high) A times that of log th.
    """

    eps_low: Fraction = 0.2
    """The ratio counts as 1 - eps_low at least."""
    eps_high: PositiveFloat = 0.2
    """Its value counts as 1 + eps_high at most."""
    dual_clip: DualClip | None = None
    """As for `ppo`; the official AEPO code uses 3."""


class Cispo(Section, tag="cispo", tag_field="kind"):
    """CISPO (2506.13585): maximise sg(clip(r, 1 - eps_low, 1 + eps_high)) A log th; no token loses its gradient."""

    eps_low: Fraction | None = None
    """Unset has no lower bound, as in the paper."""
    eps_high: PositiveFloat = 4.0
    """The weight is 1 + eps_high at most."""


class Gspo(Section, tag="gspo", tag_field="kind"):
    """GSPO (2507.18071): PPO's clip on s = exp(mean over the trajectory of log r), with s th / sg(th) at each token.

    Ranges are those of a mean over a whole trajectory. The paper's objective is with the `sequence_mean`
    normalisation.
    """

    eps_low: Fraction = 3e-4
    """s counts as 1 - eps_low at least."""
    eps_high: PositiveFloat = 4e-4
    """s counts as 1 + eps_high at most."""


class Reinforce(Section, tag="reinforce", tag_field="kind"):
    """Plain policy gradient: maximise A log th; the correction's weight makes it off-policy."""


class Nll(Section, tag="nll", tag_field="kind"):
    """Negative log-likelihood of the sampled tokens, weighted by A (1 in supervised traces); needs no behaviour."""


LossConfig = Ppo | AepoClip | Cispo | Gspo | Reinforce | Nll


class Kl(Section):
    """A penalty on KL(th || reference), the reference being the model that the run began with."""

    coef: PositiveFloat = 0.001
    """Times the penalty of each token, added to its loss."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of log q, q = th / reference: `k1` log q, `k2` (log q)^2 / 2, `k3` 1/q - 1 + log q. The gradients of k1 and k2
    are that of KL(th || reference), that of k3 (GRPO's) that of KL(reference || th); see `regularisers.kl_penalty`."""

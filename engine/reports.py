"""What the learner says of a step, and a generator of itself."""

from typing import Literal

import msgspec

from engine.types import Version

Mismatch = Literal["none", "warned", "masked"]


class VersionReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the tokens that one version of the weights sampled look to the weights before the step."""

    version: Version
    num_trained_tokens: int
    entropy: float
    kl_rollout: float
    ratio_max: float
    clip_fraction: float
    rejected_fraction: float = 0.0


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one optimiser step came to. Produced by the learner, consumed by metrics and gates."""

    step: int
    version: Version
    """Version of the weights after the step."""
    loss: float
    grad_norm: float
    learning_rate: float
    num_trained_tokens: int
    """Sampled tokens with a gradient, a shared one counted once for each trajectory."""
    num_computed_tokens: int
    """Tokens that went through the model, once, padding left out."""
    entropy: float
    """Mean over trained tokens, in nats, under the weights before the step."""
    kl_rollout: float
    """Mean of `rho - 1 - log rho`, rho = train / behaviour: an estimate of KL(behaviour || train) (k3)."""
    ratio_max: float
    """Largest train / behaviour probability ratio among trained tokens."""
    clip_fraction: float
    """Share of the trained tokens whose gradient the loss clipped away."""
    duration_s: float
    rejected_fraction: float = 0.0
    """Share that a rejection of the correction kept from being trained."""
    mismatch: Mismatch = "none"
    """What the learner's gate did about a `kl_rollout` above its limit in any update of the step."""
    num_path_tokens: int = 0
    """Tokens of all trajectories, each for itself: what would be computed if they shared nothing."""
    by_version: tuple[VersionReport, ...] = ()
    """The same means for each version that sampled trained tokens, the newest first."""


class GeneratorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one generator since its start, and its present load."""

    version: Version
    num_requests: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_sampled_tokens: int = 0
    num_prefilled_tokens: int = 0
    num_cached_tokens: int = 0
    num_evicted_tokens: int = 0
    busy_s: float = 0.0

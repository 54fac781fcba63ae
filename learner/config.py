"""Every knob of the learner, as types; light enough to be decoded before anything heavy is imported.

Symbols: b behaviour (who sampled), p proximal (the learner's weights at the start of the step), th current.
"""

from typing import Annotated, Literal

from msgspec import Meta

from engine.config import Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section
from learner.advantage import AdvantageConfig, ArpoSoft


class Ppo(Section, tag="ppo", tag_field="kind"):
    """Clipped policy gradient: maximise min(r A, clip(r, 1 - eps_low, 1 + eps_high) A); Schulman et al. 2017."""

    eps_low: Fraction = 0.2
    eps_high: PositiveFloat = 0.2
    """Above eps_low it is DAPO's clip-higher (2503.14476), which uses 0.28."""
    dual_clip: Annotated[float, Meta(gt=1)] | None = None
    """Where A < 0, the objective is bounded from below by `dual_clip * A`; the official ARPO code uses 3."""


class Reinforce(Section, tag="reinforce", tag_field="kind"):
    """Plain policy gradient: maximise A log th; the correction's weight makes it off-policy."""


class Nll(Section, tag="nll", tag_field="kind"):
    """Negative log-likelihood of the sampled tokens, weighted by A (1 in supervised traces); needs no behaviour."""


LossConfig = Ppo | Reinforce | Nll


class NoCorrection(Section, tag="none", tag_field="kind"):
    """Bypass: the ratio is th / b, and nothing else corrects for b."""


class Decoupled(Section, tag="decoupled", tag_field="kind"):
    """Decoupled PPO (Hilton 2110.00641): ratio th / p, and the weight w = p / b, detached, in front of the loss."""

    cap: PositiveFloat | None = 5.0
    """Bound of w; unset leaves it unbounded."""
    mode: Literal["clip", "mask"] = "mask"
    """Beyond the cap: `clip` trains with w = cap, `mask` (AReaL's choice) does not train the token."""


class TruncatedIs(Section, tag="truncated_is", tag_field="kind"):
    """Truncated importance sampling by token: ratio th / p, and the weight min(p / b, cap), detached."""

    cap: PositiveFloat = 2.0


CorrectionConfig = NoCorrection | Decoupled | TruncatedIs


class TokenMean(Section, tag="token_mean", tag_field="kind"):
    """Every trained token of the mini-batch weighs 1 / (number of them): DAPO, and the official ARPO code."""


class SequenceMean(Section, tag="sequence_mean", tag_field="kind"):
    """Mean over trajectories of the mean over their trained tokens: GRPO, and Eq 6 of ARPO."""


class ConstantLength(Section, tag="constant", tag_field="kind"):
    """Mean over trajectories of the sum over their trained tokens divided by one constant: Dr.GRPO (2503.20783)."""

    length: Positive
    """The constant, in tokens; the longest response the run allows."""


NormalisationConfig = TokenMean | SequenceMean | ConstantLength


class ConstantSchedule(Section, tag="constant", tag_field="kind"):
    """The learning rate `lr`, after a linear warm-up."""

    warmup_steps: NonNegative = 0


class CosineSchedule(Section, tag="cosine", tag_field="kind"):
    """A linear warm-up, then half a cosine down to `min_ratio * lr` at `total_steps`, and that from there on."""

    total_steps: Positive
    warmup_steps: NonNegative = 0
    min_ratio: Fraction = 0.0


ScheduleConfig = ConstantSchedule | CosineSchedule


AttentionKind = Literal["auto", "chains", "flex", "flash", "dense"]


class LearnerConfig(Section):
    """How to turn batches into weights."""

    lr: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled (AdamW); not applied to norms and biases."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    adam_eps: PositiveFloat = 1e-8
    grad_clip: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 does not clip."""
    schedule: ScheduleConfig = ConstantSchedule()

    loss: LossConfig = Ppo()
    correction: CorrectionConfig = Decoupled()
    advantage: AdvantageConfig = ArpoSoft()
    normalisation: NormalisationConfig = TokenMean()
    num_minibatches: Positive = 1
    """Optimiser updates a step; each takes a share of the prompts. The version counts steps, not updates."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the policy: log-probabilities are those of the distribution it drew from."""

    micro_batch_tokens: Positive = 8192
    """Tokens in one packed row; a longer sequence gets a row of its own."""
    packing: Literal["tree", "flat"] = "tree"
    """`tree` computes what trajectories of a prompt share once; `flat` each trajectory for itself. The loss is the
    same."""
    attention: AttentionKind = "auto"
    """`auto` is `chains` on a CPU; on CUDA `flash` (flash-attn) for rows without a fork, where it is installed, and
    `flex` (FlexAttention) for the others. `dense` computes all pairs: the reference."""
    fixed_shapes: bool = False
    """Pad every row to `micro_batch_tokens`, so that results do not depend on what else is in the batch's rows."""
    dtype: Literal["float32", "bf16", "float64"] = "bf16"
    """Of weights and activations; with bf16 the optimiser keeps float32 masters and gradients."""
    publish_dtype: Literal["float32", "bf16"] | None = None
    """Of published weights; unset is `dtype`."""
    publish_bucket_mib: Positive = 512
    """Published weights are gathered and written in files of so many MiB at most (one larger tensor goes alone), which
    bounds what publishing takes beside the model."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: of the attention, or of whole layers."""

    tensor_parallel: Positive = 1
    pipeline_parallel: Positive = 1
    data_parallel: Positive = 1
    sequence_parallel: bool = False
    """Shard the activations between tensor-parallel regions along the sequence."""
    distributed_optimizer: bool = False
    """Share the optimiser's state among replicas: each keeps, and updates, its part of the parameters (ZeRO-1)."""
    seed: int = 0

    @property
    def world_size(self) -> int:
        """Processes this layout takes."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def is_supervised(self) -> bool:
        """Whether the loss needs no behaviour policy, and so no correction."""
        return isinstance(self.loss, Nll)

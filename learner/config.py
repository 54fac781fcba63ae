"""Every knob of the learner, as types; light enough to be decoded before anything heavy is imported.

Symbols: b behaviour (who sampled), p proximal (the learner's weights at the start of the step), th current.
"""

from typing import Literal

from engine.config import Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section
from learner.algorithms.advantage_config import (
    AdvantageConfig,
    Aepo,
    ArpoHard,
    ArpoSoft,
    Dapo,
    DrGrpo,
    Grpo,
    Overlong,
    PlainReward,
    ReinforcePp,
    ReinforcePpBaseline,
    Rloo,
    TreeGrpo,
)
from learner.algorithms.correction_config import (
    CorrectionConfig,
    Decoupled,
    ExactIs,
    IcePop,
    M2po,
    NoCorrection,
    RejectionConfig,
    SequenceGeometric,
    SequenceK3,
    SequenceProduct,
    TruncatedIs,
    Veto,
)
from learner.algorithms.loss_config import AepoClip, Cispo, Gspo, Kl, LossConfig, Nll, Ppo, Reinforce

__all__ = [
    "AdvantageConfig",
    "Aepo",
    "AepoClip",
    "ArpoHard",
    "ArpoSoft",
    "AttentionKind",
    "Cispo",
    "ConstantLength",
    "ConstantSchedule",
    "CorrectionConfig",
    "CosineSchedule",
    "Dapo",
    "Decoupled",
    "DrGrpo",
    "ExactIs",
    "Grpo",
    "Gspo",
    "IcePop",
    "Kl",
    "LeafWeighting",
    "LearnerConfig",
    "LossConfig",
    "M2po",
    "MismatchGate",
    "Nll",
    "NoCorrection",
    "NormalisationConfig",
    "Overlong",
    "PlainReward",
    "Ppo",
    "Reinforce",
    "ReinforcePp",
    "ReinforcePpBaseline",
    "RejectionConfig",
    "Rloo",
    "ScheduleConfig",
    "SequenceGeometric",
    "SequenceK3",
    "SequenceMean",
    "SequenceProduct",
    "TokenMean",
    "TreeGrpo",
    "TruncatedIs",
    "Veto",
]


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
    """Steps along which the rate grows from 0."""


class CosineSchedule(Section, tag="cosine", tag_field="kind"):
    """A linear warm-up, then half a cosine down to `min_ratio * lr` at `total_steps`, and that from there on."""

    total_steps: Positive
    """Where the cosine ends."""
    warmup_steps: NonNegative = 0
    """Steps along which the rate grows from 0."""
    min_ratio: Fraction = 0.0
    """Of `lr`, from `total_steps` on."""


ScheduleConfig = ConstantSchedule | CosineSchedule


LeafWeighting = Literal["equal", "inverse_branching"]
AttentionKind = Literal["auto", "chains", "flex", "flash", "dense"]


class MismatchGate(Section):
    """What happens where the weights that train say something else than those that sampled: a bug of an engine, a wrong
    temperature, or samples that are too old."""

    kl_limit: PositiveFloat = 0.1
    """Of the mean of `rho - 1 - log rho` over an update's trained tokens, rho = train / behaviour, in nats. Engines
    that agree stay below 0.001; a policy that has moved on by some steps adds to that."""
    action: Literal["warn", "mask", "stop"] = "warn"
    """`warn` says so in the log and the metrics; `mask` leaves out the trajectories whose own mean is above the limit;
    `stop` ends the run with nothing applied."""


class LearnerConfig(Section):
    """How to turn batches into weights."""

    lr: PositiveFloat = 1e-6
    """Learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled (AdamW); not applied to norms and biases."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of AdamW's two moments, a step."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 does not clip."""
    schedule: ScheduleConfig = ConstantSchedule()
    """How the learning rate changes with the steps."""

    advantage: AdvantageConfig = ArpoSoft()
    """How rewards become advantages."""
    overlong: Overlong | None = None
    """Take from the reward of responses near the length limit; unset takes nothing."""
    loss: LossConfig = Ppo()
    """What is maximised for a token."""
    kl: Kl | None = None
    """Penalty for leaving the model that the run began with; unset needs no reference model."""
    entropy_coef: NonNegativeFloat = 0.0
    """Times the entropy of each trained token, in nats, taken from its loss."""
    correction: CorrectionConfig = Decoupled()
    """Weight of a token that an older policy sampled."""
    rejections: tuple[RejectionConfig, ...] = ()
    """What is not trained; a token must pass all of them."""
    gate: MismatchGate = MismatchGate()
    normalisation: NormalisationConfig = TokenMean()
    """How tokens are averaged."""
    leaf_weighting: LeafWeighting = "equal"
    """`inverse_branching`: a fork divides the weight of its path among its branches, so that a bushy sub-tree counts no
    more than the chain it grew from; a path that begins at the prompt weighs 1. `equal`: every trajectory counts the
    same, as in the papers."""
    num_minibatches: Positive = 1
    """Optimiser updates a step; each takes a share of the prompts. The version counts steps, not updates."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the policy: log-probabilities are those of the distribution it drew from."""

    micro_batch_tokens: Positive = 8192
    """Tokens in one packed row; a longer sequence gets a row of its own."""
    max_trajectory_tokens: Positive | None = None
    """A group with a longer trajectory is refused: what a row of its own may take of memory. Unset trains all."""
    packing: Literal["tree", "flat"] = "tree"
    """`tree` computes what trajectories of a prompt share once; `flat` each trajectory for itself. The loss is the
    same."""
    attention: AttentionKind = "auto"
    """`auto` is `chains` on a CPU; on CUDA `flash` (flash-attn, where it is installed) for rows of bf16 without a fork
    and `flex` (FlexAttention) for the others. `dense` computes all pairs: the reference."""
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
    """Processes that share each layer."""
    pipeline_parallel: Positive = 1
    """Processes among which the layers are divided."""
    data_parallel: Positive = 1
    """Replicas among which a batch is divided."""
    sequence_parallel: bool = False
    """Shard the activations between tensor-parallel regions along the sequence."""
    distributed_optimizer: bool = False
    """Share the optimiser's state among replicas: each keeps, and updates, its part of the parameters (ZeRO-1)."""
    seed: int = 0
    """Of what kernels draw at random."""

    @property
    def world_size(self) -> int:
        """Processes this layout takes."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def is_supervised(self) -> bool:
        """Whether the loss needs no behaviour policy, and so no correction."""
        return isinstance(self.loss, Nll)

"""The arms of `tool-budget`: what each of them lays over the common configuration, and nothing else.

A preset brings its branching, its advantage and its loss: they are what it is. Where the entropy is looked at belongs
to the task, and is the same for all arms that look.
"""

from collections.abc import Mapping
from pathlib import Path

CONFIG = Path(__file__).with_name("tool_budget.toml")
Overlay = tuple[str, ...]
"""Shipped files and keys, as behind `arpo train CONFIG`, from left to right."""

ARPO = "algorithms/arpo.toml"
_PROBE = ("rollout.branching.probe_tokens=2", "rollout.branching.fork_at=tool_result")
_TAU = "rollout.branching.tau=0.502"
UNIFORM_RATE = 0.2
"""Share of the results behind which `arpo` wants a fork, over a run on a validation seed."""
BLIND_RATE = 0.17
"""The same of `ours`."""
_THRIFTY = ("algorithms/thrifty.toml", *_PROBE)

ARMS: Mapping[str, Overlay] = {
    "chain": ("algorithms/grpo.toml",),
    "ours": (*_THRIFTY, _TAU),
    "arpo": (ARPO,),
    "uniform": (ARPO, f"rollout.branching={{kind='uniform', rate={UNIFORM_RATE}}}", *_PROBE),
    "dapo": ("algorithms/dapo.toml",),
    "reinforce_pp": ("algorithms/reinforce_pp.toml",),
    "official": (ARPO, "rollout.branching={kind='official'}"),
    "arpo_sampled": (ARPO, "rollout.branching={kind='arpo_sampled'}", *_PROBE),
    "aepo": ("algorithms/aepo.toml", *_PROBE, _TAU),
    "tree_grpo": ("algorithms/tree_grpo.toml",),
    "ours_blind": (*_THRIFTY, f"rollout.branching={{kind='uniform', rate={BLIND_RATE}, initial=1}}", *_PROBE),
    "ours_m4": (*_THRIFTY, _TAU, "rollout.size=4"),
    "chain_m4": ("algorithms/grpo.toml", "rollout.size=4"),
    "ours_fixed": (*_THRIFTY, _TAU, "train.deterministic=true"),
    "chain_fixed": ("algorithms/grpo.toml", "train.deterministic=true"),
}
"""Those behind `tree_grpo` tell what `ours` owes to entropy, what smaller groups do by themselves, and what it is worth
where a group without a signal is not replaced by another one."""

QUICK: Overlay = (
    "world.num_sft=400",
    "world.num_drills=200",
    "world.num_train=400",
    "world.num_valid=20",
    "world.num_test=20",
    "world.plus=0.0",
    "sft.1.steps=40",
    "sft.0.steps=20",
    "sft.0.until_loss=",
    "rollout.size=4",
    "rollout.branching.initial=2",
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_every=1",
)
"""Enough to see that everything works; nothing is learned."""
CACHED: Overlay = ("tools.cache.reuse=true",)

"""Branching policies: each formula on numbers worked by hand."""

import math
from typing import Any

import pytest

from engine.branching import Aepo, AnyBranching, Arpo, ArpoSampled, Branching, Chain, Official, TreeGrpo, Uniform
from engine.config import Section, decode
from engine.entropy import Signal
from engine.errors import ConfigError


def signal(delta: float, **changes: Any) -> Signal:
    """A rise of `delta` of the largest entropy, 10 nats, over a baseline of 1."""
    fields: dict[str, Any] = {"num_probed": 20, "num_baseline": 20, "coin": 0.5, "streak": 0, **changes}
    return Signal(entropy=1.0 + 10.0 * delta, baseline=1.0, log_vocab=10.0, **fields)


@pytest.mark.parametrize(
    ("policy", "given_signal", "score", "is_wanted"),
    [
        # P = alpha + beta dH > tau: strictly, so the paper's own numbers fork on any rise and on no standstill.
        (Arpo(), signal(0.1), 0.52, True),
        (Arpo(), signal(0.0), 0.5, False),
        (Arpo(), signal(-0.1), 0.48, False),
        (Arpo(alpha=0.1, beta=2.0, tau=0.4), signal(0.2), 0.5, True),
        # The same P as a probability, against the coin.
        (ArpoSampled(), signal(0.1, coin=0.519), 0.52, True),
        (ArpoSampled(), signal(0.1, coin=0.521), 0.52, False),
        (ArpoSampled(beta=10.0), signal(0.9, coin=0.999), 1.0, True),
        (ArpoSampled(beta=10.0), signal(-0.9, coin=0.0), 0.0, False),
        # (alpha + gamma dH)(1 - penalty l) > tau.
        (Aepo(), signal(0.3), 0.56, True),
        (Aepo(), signal(0.3, streak=3), 0.56 * 0.85, False),
        (Aepo(penalty=0.0), signal(0.3, streak=9), 0.56, True),
        # Blind: only the coin matters.
        (Uniform(rate=0.25), signal(0.9, coin=0.24), 0.25, True),
        (Uniform(rate=0.25), signal(0.9, coin=0.25), 0.25, False),
        (Uniform(rate=0.0), signal(0.9, coin=0.0), 0.0, False),
        (Chain(), signal(0.9), 0.9, False),
        (TreeGrpo(), signal(0.9), 0.9, False),
        # clip(u - w D) <= p with D = (20 * 3 - 20 * 1) / 10 = 4.
        (Official(), signal(0.2, coin=0.9), 0.1, True),
        (Official(), signal(0.0, coin=0.5), 0.5, True),
        (Official(), signal(0.0, coin=0.51), 0.51, False),
        (Official(), signal(-0.2, coin=0.9), 1.0, False),
        # Sums, not means: ten positions weigh half of twenty.
        (Official(), signal(0.2, coin=0.9, num_probed=10), 0.9 - 0.2 * (10 * 3 - 20 * 1) / 10, False),
    ],
)
def test_formula_on_numbers(policy: Branching, given_signal: Signal, score: float, is_wanted: bool) -> None:
    assert policy.score(given_signal) == pytest.approx(score)
    assert policy.wants(given_signal) is is_wanted


def test_aepo_starts_more_paths_the_less_sure_the_question_is_against_its_tools() -> None:
    policy = Aepo(balance=0.5)
    assert policy.initial_paths(root=1.0, tools=1.0, size=16) == 8
    assert policy.initial_paths(root=3.0, tools=1.0, size=16) == round(16 / (1 + math.exp(-1.0))) == 12
    assert policy.initial_paths(root=1.0, tools=3.0, size=16) == round(16 / (1 + math.exp(1.0))) == 4
    assert policy.initial_paths(root=0.0, tools=99.0, size=16) == 1, "one at least"
    assert policy.initial_paths(root=99.0, tools=0.0, size=16) == 16, "M at most"


def test_only_the_official_rule_looks_behind() -> None:
    policies = [Arpo(), ArpoSampled(), Aepo(), TreeGrpo(), Uniform(), Chain(), Official()]
    assert [type(p).__name__ for p in policies if p.looks_behind] == ["Official"]
    assert {type(p).__name__ for p in policies if p.fork_at == "tool_result"} == {"TreeGrpo", "Official"}
    with pytest.raises(TypeError, match="Branching has no rule"):
        Branching().wants(signal(0.0))


class Whole(Section, kw_only=True):
    branching: AnyBranching


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("arpo", Arpo),
        ("arpo_sampled", ArpoSampled),
        ("aepo", Aepo),
        ("tree_grpo", TreeGrpo),
        ("uniform", Uniform),
        ("chain", Chain),
        ("official", Official),
    ],
)
def test_policies_are_chosen_by_their_names(name: str, kind: type[Branching]) -> None:
    assert type(decode({"branching": {"kind": name}}, Whole, source="x").branching) is kind
    with pytest.raises(ConfigError, match=r"at `\$.branching.probe_tokens`"):
        decode({"branching": {"kind": name, "probe_tokens": 0}}, Whole, source="x")

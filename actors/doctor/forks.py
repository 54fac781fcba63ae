"""Forks: whether the branching rule can ever say yes, and ever no, and whether there is room for what it grants."""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, warning
from engine.branching import Aepo, AnyBranching, Arpo, ArpoSampled, Chain, TreeGrpo, Uniform
from engine.granting import Ranked
from engine.rollout_config import RolloutConfig

BRANCHING = "rollout.branching"


def check_forks(case: Case) -> Iterator[Finding]:
    rollout = case.config.rollout
    branching = rollout.branching
    if isinstance(branching, Chain):
        yield ok(BRANCHING, f"no forks: {rollout.size} independent trajectories a prompt")
        return
    problems = [*_room(rollout), *_rule(branching), *_granting(rollout)]
    if not case.config.tools.has_any:
        problems.append(warning("tools", "none is configured: without tool results nothing forks"))
    yield from problems
    if not problems:
        text = f"{branching.initial} of {rollout.size} trajectories begin at the prompt, the others where it forks"
        yield ok(BRANCHING, text)


def _room(rollout: RolloutConfig) -> Iterator[Finding]:
    initial, size = rollout.branching.initial, rollout.size
    if initial > size:
        yield warning(f"{BRANCHING}.initial", f"N = {initial} paths begin at the prompt, and there are M = {size}")
    elif initial == size:
        yield warning(f"{BRANCHING}.initial", f"N = M = {size}: no place is left for a fork; kind = 'chain' says so")
    if rollout.branching.branches > size - initial > 0:
        text = f"a fork starts {rollout.branching.branches} branches, and M - N = {size - initial} is all there is"
        yield warning(f"{BRANCHING}.branches", text)


def _rule(branching: AnyBranching) -> Iterator[Finding]:
    """The signal dH is in [-1, 1], so a linear rule has bounds; a rule that is decided by them looks at nothing."""
    low, high, limit, key = 0.0, 1.0, 0.5, f"{BRANCHING}.tau"
    match branching:
        case Arpo():
            low, high = branching.alpha - abs(branching.beta), branching.alpha + abs(branching.beta)
            limit = branching.tau
        case Aepo():
            # Consecutive forks lower it further, so only the upper bound is one.
            low, high = branching.tau, branching.alpha + abs(branching.gamma)
            limit = branching.tau
        case ArpoSampled():
            low, high, limit = 0.0, branching.alpha + abs(branching.beta), 0.0
            key = f"{BRANCHING}.alpha"
        case Uniform():
            low, high, limit, key = 0.0, branching.rate, 0.0, f"{BRANCHING}.rate"
        case _:
            pass
    if high <= limit:
        yield warning(key, f"nothing ever forks: P is {high:g} at most, and must be above {limit:g}")
    elif low > limit:
        yield warning(key, f"everything forks: P is {low:g} at least, and above {limit:g}")


def _granting(rollout: RolloutConfig) -> Iterator[Finding]:
    if not isinstance(rollout.granting, Ranked) or isinstance(rollout.branching, TreeGrpo):
        return
    window, fraction = rollout.granting.window, rollout.granting.fraction
    if not round(window * fraction):
        text = f"{fraction:g} of {window} proposals rounds to none: forks are granted only to trees that run dry"
        yield warning("rollout.granting.fraction", text)
    if rollout.budget.leaves_per_cohort is None:
        text = "places move between trees only under rollout.budget.leaves_per_cohort: every tree ends with M"
        yield warning("rollout.granting", text)

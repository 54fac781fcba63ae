"""Budgets: whether M, N and the limits on calls and trajectories agree with each other."""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, warning
from engine.branching import Chain

BUDGET = "rollout.budget"


def check_budgets(case: Case) -> Iterator[Finding]:
    problems = [*_calls(case), *_leaves(case)]
    yield from problems
    if not problems:
        yield ok(BUDGET, "the limits agree with each other")


def _calls(case: Case) -> Iterator[Finding]:
    """Whoever comes late finds a budget used up: its calls are refused, and it must answer with what it knows."""
    rollout, train = case.config.rollout, case.config.train
    budget = rollout.budget
    initial = rollout.size if isinstance(rollout.branching, Chain) else min(rollout.branching.initial, rollout.size)
    prompts, steps = train.batch_size, train.steps
    most = prompts * (steps or 1)
    floors = (
        ("calls_per_path", 1, "no tool is ever called"),
        ("calls_per_prompt", initial, f"fewer than the {initial} paths that begin: late ones get no call"),
        ("calls_per_cohort", prompts, f"fewer than the {prompts} prompts of a cohort: late ones get no call"),
        ("calls_per_run", most, f"fewer than one for each of {most:,} prompts: late ones get no call"),
    )
    for name, least, text in floors:
        limit = getattr(budget, name)
        if limit is not None and limit < least:
            yield warning(f"{BUDGET}.{name}", f"{limit}: {text}")
    # From the widest to the narrowest: one that the narrower ones below can never use up is no limit.
    widths = {"calls_per_prompt": rollout.size, "calls_per_cohort": prompts * rollout.size}
    if budget.calls_per_path is not None:
        for name, paths in widths.items():
            limit, all_paths = getattr(budget, name), paths * budget.calls_per_path
            if limit is not None and limit > all_paths:
                text = f"{limit} is never reached: {paths} paths of {budget.calls_per_path} calls are {all_paths}"
                yield warning(f"{BUDGET}.{name}", text)


def _leaves(case: Case) -> Iterator[Finding]:
    rollout, prompts = case.config.rollout, case.config.train.batch_size
    leaves, key = rollout.budget.leaves_per_cohort, f"{BUDGET}.leaves_per_cohort"
    if leaves is None:
        return
    if leaves >= prompts * rollout.size:
        yield warning(key, f"{leaves} is no limit: {prompts} prompts of M = {rollout.size} trajectories need no more")
    elif isinstance(rollout.branching, Chain):
        yield warning(key, f"{leaves} for {prompts} prompts of {rollout.size} samples: late prompts get fewer, or none")
    elif leaves < (first := prompts * min(rollout.branching.initial, rollout.size)):
        text = f"{leaves} is less than the {first} paths that begin at the prompt: late prompts get fewer, or none"
        yield warning(key, text)
    elif leaves == first:
        yield warning(key, f"{leaves} is what begins at the prompt: no place is left for a fork")

"""Sampling: whether the learner's log-probabilities are those of the distribution that the paths are drawn from."""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, refused, warning


def check_sampling(case: Case) -> Iterator[Finding]:
    sampling, learner = case.config.rollout.sampling, case.config.learner
    problems: list[Finding] = []
    if sampling.temperature == 0:
        text = "0 is greedy: all trajectories of a prompt are equal, and no group holds a learning signal"
        problems.append(refused("rollout.sampling.temperature", text))
    elif sampling.temperature != learner.temperature:
        text = f"paths are sampled at {sampling.temperature:g} and scored at {learner.temperature:g}"
        problems.append(warning("learner.temperature", text))
    if sampling.top_p < 1 or sampling.top_k > 0:
        text = "a cut distribution is sampled, and the whole one is scored"
        problems.append(warning("rollout.sampling.top_p" if sampling.top_p < 1 else "rollout.sampling.top_k", text))
    if learner.is_supervised:
        text = "'nll' is the loss of a cold start: advantages would only weigh its tokens"
        problems.append(warning("learner.loss.kind", text))
    yield from problems
    if not problems:
        yield ok("learner.temperature", f"paths are sampled and scored at {learner.temperature:g}")

"""Lengths: whether a prompt with its longest response fits into the model's positions and into a generator's cache."""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, refused, warning

RESPONSE = "rollout.sampling.max_response_tokens"


def check_lengths(case: Case) -> Iterator[Finding]:
    """A run refuses by the longest prompt of its data, which may be shorter than what the configuration allows."""
    if case.shape is None:
        return
    sampling = case.config.rollout.sampling
    limit, what = case.shape.max_positions, "the model's positions"
    if (kv_tokens := case.config.generator.max_kv_tokens) is not None and kv_tokens < limit:
        limit, what = kv_tokens, "generator.max_kv_tokens"
    response = sampling.max_response_tokens
    sections = {"data": case.config.data}
    if case.config.eval is not None:
        sections["eval.data"] = case.config.eval.data
        if case.config.eval.validation is not None:
            sections["eval.validation"] = case.config.eval.validation
    if response >= limit:
        yield refused(RESPONSE, f"a response of {response:,} tokens and a prompt do not fit into {limit:,} ({what})")
        return
    for section, data in sections.items():
        longest = data.max_prompt_tokens
        key = f"{section}.max_prompt_tokens"
        if longest + response > limit:
            text = f"prompts of {limit - response + 1:,} to {longest:,} tokens and a response of {response:,}"
            yield warning(key, f"{text} would not fit into {limit:,} ({what}): the run refuses them")
        else:
            text = f"a prompt of {longest:,} tokens and a response of {response:,} fit into {limit:,} ({what})"
            yield ok(key, text)
    yield from _probe(case)


def _probe(case: Case) -> Iterator[Finding]:
    sampling, branching = case.config.rollout.sampling, case.config.rollout.branching
    shortest = min(sampling.max_segment_tokens, sampling.max_response_tokens)
    if branching.looks_ahead and branching.probe_tokens > shortest:
        text = f"the entropy of {branching.probe_tokens} tokens is never known: a segment has up to {shortest}"
        yield warning("rollout.branching.probe_tokens", text)

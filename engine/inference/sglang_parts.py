"""A request in parts: one ends where forks may begin, or is cut short, and the next goes on from there."""

import msgspec
import numpy as np

from engine.types import Completion, GenerateRequest, Int32


def next_part(request: GenerateRequest) -> GenerateRequest:
    """Up to where forks may begin; all of it where that is not before its end."""
    if not 0 < request.fork_after < request.sampling.max_new_tokens:
        return request
    return _resized(request, max_new_tokens=request.fork_after)


def rest(request: GenerateRequest, sampled: Int32) -> GenerateRequest:
    """What is left of a request behind the tokens of a part.

    Of one for 8 tokens behind a prompt of 4, with forks after 3, that has sampled 2: one for 6 behind 6, after 1.
    """
    left = _resized(request, max_new_tokens=request.sampling.max_new_tokens - sampled.size)
    return msgspec.structs.replace(
        left,
        token_ids=np.concatenate([request.token_ids, sampled]),
        fork_after=max(request.fork_after - sampled.size, 0),
    )


def continued(chunk: Completion) -> Completion:
    """The first chunk of a later part, as one in the middle of a stream.

    The last sampled token is computed there as it would have been here; what else was computed is a loss that shows:
    the prefix was flushed or evicted in between.
    """
    num_prefilled = max(chunk.num_prefilled_tokens - 1, 0)
    return msgspec.structs.replace(chunk, begins_anew=True, num_cached_tokens=0, num_prefilled_tokens=num_prefilled)


def _resized(request: GenerateRequest, *, max_new_tokens: int) -> GenerateRequest:
    sampling = msgspec.structs.replace(request.sampling, max_new_tokens=max_new_tokens)
    return msgspec.structs.replace(request, sampling=sampling)

"""A request in two parts: the first ends where forks may begin, the second goes on from there."""

import msgspec
import numpy as np

from engine.types import Completion, GenerateRequest, Int32


def first_part(request: GenerateRequest) -> GenerateRequest | None:
    """Up to where forks may begin; None where that is not before the request's own end."""
    if not 0 < request.fork_after < request.sampling.max_new_tokens:
        return None
    return _resized(request, max_new_tokens=request.fork_after)


def second_part(request: GenerateRequest, sampled: Int32) -> GenerateRequest:
    """What is left of a request behind its first part, which sampled `sampled`."""
    rest = _resized(request, max_new_tokens=request.sampling.max_new_tokens - sampled.size)
    return msgspec.structs.replace(rest, token_ids=np.concatenate([request.token_ids, sampled]))


def continued(chunk: Completion) -> Completion:
    """The first chunk of a second part, as one in the middle of a stream.

    The last sampled token is computed there as it would have been here; what else was computed is a loss that shows:
    the prefix was flushed or evicted in between.
    """
    return msgspec.structs.replace(
        chunk, num_cached_tokens=0, num_prefilled_tokens=max(chunk.num_prefilled_tokens - 1, 0)
    )


def _resized(request: GenerateRequest, *, max_new_tokens: int) -> GenerateRequest:
    sampling = msgspec.structs.replace(request.sampling, max_new_tokens=max_new_tokens)
    return msgspec.structs.replace(request, sampling=sampling)

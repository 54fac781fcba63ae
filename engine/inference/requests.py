"""What every backend refuses: requests that can never run, said in one line before anything is queued."""

from engine.errors import RequestRefusedError
from engine.types import GenerateRequest


def check_request(request: GenerateRequest, *, vocab_size: int, max_length: int) -> None:
    """Raise `RequestRefusedError` for a request without tokens, longer than `max_length`, or outside the vocabulary.

    A token id that the model has no row for reads foreign memory in one backend and ends the whole server in another.
    """
    size, sampling = request.token_ids.size, request.sampling
    what = f"request {request.request_id}"
    if not size or sampling.max_new_tokens < 1 or request.stream_interval < 1:
        raise RequestRefusedError(
            f"{what}: needs a prompt, max_new_tokens >= 1 and stream_interval >= 1; got "
            f"{size} prompt tokens, {sampling.max_new_tokens=}, {request.stream_interval=}"
        )
    if size + sampling.max_new_tokens > max_length:
        raise RequestRefusedError(
            f"{what}: {size} prompt tokens and {sampling.max_new_tokens} new ones can never fit into {max_length} "
            "(the smaller of the backend's KV tokens and the model's positions)"
        )
    low, high = int(request.token_ids.min()), int(request.token_ids.max())
    if low < 0 or high >= vocab_size:
        raise RequestRefusedError(f"{what}: token ids {low}..{high} leave the vocabulary of {vocab_size}")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise RequestRefusedError(f"{what}: got {sampling.temperature=}, {sampling.top_p=}")

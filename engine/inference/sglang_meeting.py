"""Meeting an SGLang server: who it is, how it streams and counts, and whether it is the one that was meant."""

import logging
import re
from dataclasses import dataclass

from engine.errors import GeneratorError, RequestRefusedError
from engine.inference.sglang_http import NEEDED, SglangHttp
from engine.inference.shape import ModelShape
from engine.types import Version

logger = logging.getLogger(__name__)

_RELEASE = re.compile(r"(?P<numbers>\d+(?:\.\d+)*)(?P<before>\.?(?:a|b|rc|dev)\d*)?")


@dataclass(frozen=True, kw_only=True)
class Server:
    """What a client needs to know of its server."""

    version: Version
    """Of its weights."""
    is_incremental: bool
    """Each event holds what is new; otherwise all so far."""
    max_length: int
    """Tokens of the longest request that can ever run."""
    num_ranks: int
    """Its tensor-parallel size."""
    backend: str
    """Of a process group with it: gloo or nccl."""


async def meet(http: SglangHttp, shape: ModelShape, *, answer_timeout_s: float) -> Server:
    """Ask a server who it is. Weights without a number become version 0.

    A server that is busy with others may take `answer_timeout_s` for the two tokens by which its vocabulary is checked.
    Raises `GeneratorError` for a server of another model, vocabulary or time.
    """
    server, model = await http.get("/server_info"), await http.get("/model_info")
    found = str(server.get("version", "unknown"))
    if release(found) < release(NEEDED):
        raise GeneratorError(f"{http.url}: SGLang {found} answers there, {NEEDED} or newer is needed")
    if (kind := model.get("model_type")) != shape.kind:
        raise GeneratorError(f"{http.url}: a {kind} model is served there, not a {shape.kind} one")
    if guesses := server.get("speculative_algorithm"):
        raise GeneratorError(f"{http.url}: the server samples ahead ({guesses}), and does not say whose tokens it kept")
    await _check_vocabulary(http, shape.vocab_size, answer_timeout_s=answer_timeout_s)
    is_incremental = bool(server.get("incremental_streaming_output"))
    if not is_incremental:
        logger.warning("%s repeats all tokens in every chunk; --incremental-streaming-output avoids that", http.url)
    version = str(model.get("weight_version", ""))
    if not version.isdecimal():
        version = "0"
        await http.post("/update_weight_version", {"new_version": version})
    return Server(
        version=int(version),
        is_incremental=is_incremental,
        max_length=min(int(server["max_total_num_tokens"]), shape.max_positions),
        num_ranks=int(server.get("tp_size", 1)),
        backend="gloo" if server.get("device") == "cpu" else "nccl",
    )


async def _check_vocabulary(http: SglangHttp, size: int, *, answer_timeout_s: float) -> None:
    """The last token id must exist there, and the next one must not; this costs one token."""
    for token, exists in ((size - 1, True), (size, False)):
        body = {
            "input_ids": [0],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "token_ids_logprob": [token],
        }
        try:
            await http.post("/generate", body, timeout_s=answer_timeout_s)
            is_there = True
        except RequestRefusedError:
            is_there = False
        if is_there is not exists:
            raise GeneratorError(f"{http.url}: the model served there has not {size} tokens, as this run's has")


def release(version: str) -> tuple[tuple[int, ...], bool]:
    """A version to compare by: what comes before a release is older than it, what comes after is the release.

    >>> release("0.5.21rc1") < release("0.5.21") == release("0.5.21.post1") < release("0.5.22rc0")
    True
    """
    found = _RELEASE.match(version)
    if found is None:
        return (), False
    return tuple(int(number) for number in found["numbers"].split(".")), found["before"] is None

"""What SGLang streams, as `Completion`s.

Each event holds the tokens since the last one where the server streams incrementally, and all tokens so far where it
does not. The server names one version an event, the one it has when it sends it. Where that is still the version that
the request began with, all its tokens are of it. Where it is another one, nothing but the spans of the last event says
which token is of which: what is in doubt is held, and whoever reads should end the request, to learn it now.

Log-probabilities and alternatives are those of the distribution that was sampled from: SGLang divides the logits by the
temperature first, and takes temperature 1 for a greedy request, which is what `Completion` asks for.
"""

import logging
from collections.abc import Callable

import msgspec
import numpy as np

from engine.entropy import entropy_bounds
from engine.errors import GeneratorError, RequestRefusedError
from engine.types import Completion, FinishReason, Float32, GenerateRequest, Version

_Scored = tuple[float | None, int, str | None]
"""Log-probability (null for -inf, which JSON lacks), token id, text."""


class _Span(msgspec.Struct):
    version: str
    start: int
    end: int


class _Finish(msgspec.Struct):
    type: str
    message: str = ""
    status_code: int | None = None


class _Meta(msgspec.Struct):
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: _Finish | None = None
    weight_version: str = ""
    weight_versions: list[_Span] = []
    output_token_logprobs: list[_Scored] = []
    output_top_logprobs: list[list[_Scored] | None] = []


class _Error(msgspec.Struct):
    message: str
    code: int = 0


class _Event(msgspec.Struct):
    output_ids: list[int] = []
    meta_info: _Meta = msgspec.field(default_factory=_Meta)
    error: _Error | None = None


_EVENTS = msgspec.json.Decoder(_Event)

logger = logging.getLogger(__name__)


class ChunkReader:
    """Turns the events of one request into its chunks."""

    def __init__(
        self,
        request: GenerateRequest,
        *,
        version: Version,
        vocab_size: int,
        is_incremental: bool,
        is_mixed: Callable[[Version], bool],
    ) -> None:
        """`version` is the server's before it gets the request; `is_mixed` says whether a token of a version was
        sampled over KV of an older one."""
        self._request = request
        self.version = version
        """The one that the server has named last."""
        self._vocab_size = vocab_size
        self._is_incremental = is_incremental
        self._is_mixed = is_mixed
        self._held: list[_Event] = []
        """Incremental events that do not fill a chunk yet, or are in doubt."""
        self._num_held = 0
        self._versions: list[Version] = []
        """Of all tokens so far, those that are held included."""
        self.is_in_doubt = False
        """Whether the server has changed its version since; no chunk is complete before the last event then."""
        self.is_ended = False

    def read(self, payload: bytes) -> Completion | None:
        """The chunk that an event completes; None where it is held: for `stream_interval` tokens, or for the end.

        Raises `GeneratorError` for an event that reports one, or that cannot be read.
        """
        try:
            event = _EVENTS.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise GeneratorError(f"{self._request.request_id}: an event that SGLang does not send: {error}") from None
        if event.error is not None:
            raise _failure(event.error.code, f"{self._request.request_id}: {event.error.message}")
        finish = event.meta_info.finish_reason
        if finish is not None and finish.type == "abort" and finish.status_code is not None:
            raise _failure(finish.status_code, f"{self._request.request_id}: {finish.message}")
        if not self._is_incremental:
            event = self._news(event)
        if finish is not None and finish.type == "abort":
            # The last token of one that runs is not looked at: it may be a stop, or complete one, so it is left out.
            # (A server that accepts several tokens at once would look at none of them; such a one is not met.)
            # One that is aborted while it waits, after a retract, repeats its last token, and all log-probabilities.
            num_new = max(event.meta_info.completion_tokens - len(self._versions) - 1, 0)
            event = msgspec.structs.replace(event, output_ids=event.output_ids[:num_new])
        self._stamp(event)
        self._held.append(event)
        self._num_held += len(event.output_ids)
        if finish is None and (self.is_in_doubt or self._num_held < self._request.stream_interval):
            return None
        return self._chunk(finish)

    def _news(self, event: _Event) -> _Event:
        """What a cumulative event adds."""
        known = len(self._versions)
        meta = msgspec.structs.replace(
            event.meta_info,
            output_token_logprobs=event.meta_info.output_token_logprobs[known:],
            output_top_logprobs=event.meta_info.output_top_logprobs[known:],
        )
        return msgspec.structs.replace(event, output_ids=event.output_ids[known:], meta_info=meta)

    def _stamp(self, event: _Event) -> None:
        """Note the version of each new token."""
        meta = event.meta_info
        if event.output_ids:
            version = self._number(meta.weight_version)
            self.is_in_doubt |= version != self.version
            self.version = version
            self._versions += [version] * len(event.output_ids)
        if not meta.weight_versions:
            if meta.finish_reason is not None and self.is_in_doubt:
                raise GeneratorError(f"{self._request.request_id}: it ended, and nothing said which version is where")
            return
        exact = np.array(self._versions, np.int32)
        for span in meta.weight_versions:
            exact[span.start : span.end] = self._number(span.version)
        num_told = len(self._versions) - len(event.output_ids) - self._num_held
        if (num_wrong := int((exact != self._versions)[:num_told].sum())) > 0:
            logger.warning("%s: %d tokens were stamped with another version", self._request.request_id, num_wrong)
        self._versions[num_told:] = exact[num_told:].tolist()

    def _chunk(self, finish: _Finish | None) -> Completion:
        tokens = [token for event in self._held for token in event.output_ids]
        scored = [one for event in self._held for one in event.meta_info.output_token_logprobs][: len(tokens)]
        top = [one for event in self._held for one in event.meta_info.output_top_logprobs if one][: len(tokens)]
        if [token for _, token, _ in scored] != tokens or len(top) != len(tokens):
            raise GeneratorError(
                f"{self._request.request_id}: {len(tokens)} tokens came with {len(scored)} log-probabilities and "
                f"{len(top)} lists of alternatives, not one each"
            )
        low_T, high_T = self._entropies(top)
        start = len(self._versions) - len(tokens)
        first = self._held[0].meta_info  # the end of one that is aborted while it waits does not say what was computed
        versions = self._versions[start:]
        self._held, self._num_held = [], 0
        self.is_ended = finish is not None
        return Completion(
            request_id=self._request.request_id,
            token_ids=np.array(tokens, np.int32),
            logprobs=_logprobs([one[0] for one in scored]),
            entropy_low=low_T,
            entropy_high=high_T,
            versions=np.array(versions, np.int32),
            finish_reason=self._reason(finish),
            is_mixed=any(self._is_mixed(version) for version in set(versions)),
            num_cached_tokens=0 if start else first.cached_tokens,
            num_prefilled_tokens=0 if start else first.prompt_tokens - first.cached_tokens,
        )

    def _entropies(self, top: list[list[_Scored]]) -> tuple[Float32, Float32]:
        if not top:
            return np.empty(0, np.float32), np.empty(0, np.float32)
        logprobs_TN = _logprobs([[one[0] for one in row] for row in top])
        low_T, high_T = entropy_bounds(logprobs_TN, vocab_size=self._vocab_size)
        return low_T.astype(np.float32), high_T.astype(np.float32)

    def _number(self, version: str) -> Version:
        try:
            return int(version)
        except ValueError:
            raise GeneratorError(
                f"{self._request.request_id}: the server calls its weights {version!r}; a version is a number"
            ) from None

    def _reason(self, finish: _Finish | None) -> FinishReason:
        match None if finish is None else finish.type:
            case None:
                return ""
            case "stop" | "length" as reason:
                return reason
            case "abort":
                return "aborted"
            case other:
                raise GeneratorError(f"{self._request.request_id}: the server ended with {other!r}")


def aborted(request: GenerateRequest) -> Completion:
    """The only chunk of a request that was aborted before the server had it."""
    return Completion(
        request_id=request.request_id,
        token_ids=np.empty(0, np.int32),
        logprobs=np.empty(0, np.float32),
        entropy_low=np.empty(0, np.float32),
        entropy_high=np.empty(0, np.float32),
        versions=np.empty(0, np.int32),
        finish_reason="aborted",
    )


def _failure(code: int, message: str) -> GeneratorError:
    return (RequestRefusedError if code == 400 else GeneratorError)(message)


def _logprobs(values: list[float | None] | list[list[float | None]]) -> Float32:
    """With -inf for the null that JSON has instead; numpy reads it as no number, which no log-probability is."""
    logprobs = np.array(values, np.float32)
    logprobs[np.isnan(logprobs)] = -np.inf
    return logprobs

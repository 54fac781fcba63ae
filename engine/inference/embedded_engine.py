"""EmbeddedEngine: the synchronous core. Requests in, one flat forward pass a step, chunks out.

    submit ─> waiting ─ admit ─> rows ─ plan ─> Decoder.forward ─> sample ─> stop? full? ─> Completion
                 ^                 │
                 └──── preempt ────┘   (retract sends every row this way)

One thread at a time may call it. `embedded.EmbeddedGenerator` is its asynchronous face.
"""

# torch's stubs leave parts of many signatures open.
# pyright: reportUnknownMemberType=false

import ctypes
import logging
import time

import numpy as np
import torch

from engine.errors import ConfigError, DataError, GeneratorError
from engine.inference.attention import Segments, make_attention, make_kv_cache
from engine.inference.batching import Batching
from engine.inference.embedded import EmbeddedConfig
from engine.inference.model import Decoder
from engine.inference.native import load_native
from engine.inference.ops import NativeOps, Ops, Sampled, TorchOps
from engine.inference.requests import check_request
from engine.inference.rows import ActiveRequest
from engine.inference.sampling import SamplingRows, sample
from engine.inference.shape import read_shape
from engine.inference.stopping import StopStrings
from engine.interfaces import Tokenizer
from engine.reports import GeneratorStatistics
from engine.types import Completion, FinishReason, GenerateRequest, Int32, UpdateMode, Version, WeightRef

logger = logging.getLogger(__name__)


class EmbeddedEngine:
    """A model, its KV cache and the requests in flight.

    Raises `DataError` for a folder that is no model we know, `ConfigError` for a device that is not there.

    >>> engine = EmbeddedEngine(EmbeddedConfig(), model_path="/models/tiny")    # doctest: +SKIP
    >>> engine.submit(request)                                                  # doctest: +SKIP
    >>> while engine.has_work: chunks += engine.step()                          # doctest: +SKIP
    """

    def __init__(self, config: EmbeddedConfig, *, model_path: str, tokenizer: Tokenizer | None = None) -> None:
        device = _device(config)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(config.dtype)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        native = _native(config, fits=device.type == "cpu" and dtype == torch.float32)
        self.shape = read_shape(model_path)
        self._config = config
        self._device = device
        self._ops: Ops = TorchOps() if native is None else NativeOps(native)
        cache = make_kv_cache(self.shape, num_slots=config.max_kv_tokens, device=device, dtype=dtype)
        attention = make_attention(self.shape, cache, num_positions=self._max_length, native=native)
        self._model = Decoder(
            self.shape, attention, self._ops, device=device, dtype=dtype, is_deterministic=config.deterministic
        )
        self._model.load(model_path)
        self._batching = Batching(
            max_kv_tokens=config.max_kv_tokens, max_running=config.max_running, prefill_chunk=config.prefill_chunk
        )
        self._stops = StopStrings(tokenizer, vocab_size=self.shape.vocab_size)
        self._live: dict[str, ActiveRequest] = {}
        self._is_draining = False
        self._out: list[Completion] = []
        self.version: Version = 0
        self._counts = dict.fromkeys(("requests", "sampled", "prefilled", "cached"), 0)
        self._busy_s = 0.0

    def __repr__(self) -> str:
        return f"EmbeddedEngine(version {self.version}, {self._batching!r})"

    @property
    def _max_length(self) -> int:
        return min(self.shape.max_positions, self._config.max_kv_tokens)

    @property
    def has_work(self) -> bool:
        """Whether another `step` would do anything."""
        return bool(self._live or self._out)

    def check(self, request: GenerateRequest) -> None:
        """Raise `RequestRefusedError` for what can never run. Reads nothing that changes; any thread may call."""
        check_request(request, vocab_size=self.shape.vocab_size, max_length=self._max_length)
        self._stops.check(request.sampling.stop)

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request; its chunks come out of `step`. Raises `GeneratorError` as `check` does, and for an id that
        is in flight."""
        self.check(request)
        if request.request_id in self._live:
            raise GeneratorError(f"request {request.request_id}: a request of this id is in flight")
        self._counts["requests"] += 1
        active = ActiveRequest(request, arrival=self._counts["requests"])
        self._live[request.request_id] = active
        self._batching.wait(active)

    def abort(self, request_id: str) -> None:
        """End a request; its last chunk, `aborted`, comes out of the next `step`. Unknown ids are ignored."""
        if request_id in self._live:
            self._end(self._live[request_id], reason="aborted")

    def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> bool:
        """Apply an update between two steps, and return True.

        Under `drain` it returns False while requests that have started are in flight, and from then on no other one
        starts: go on with `step` and call again. Raises `GeneratorError` where the weights cannot be read or do not
        fit; the old ones stay then.
        """
        self._is_draining = mode == "drain" and any(active.has_started for active in self._live.values())
        if self._is_draining:
            return False
        try:
            self._model.load(ref.path)
        except DataError as error:
            raise GeneratorError(f"weights of version {ref.version} refused: {error}") from error
        batching = self._batching
        for row in batching.rows.used.tolist():
            if mode == "retract":
                batching.preempt(row, keep=False)
            else:
                active = batching.rows.owner(row)
                active.is_mixed = active.has_unsent_mixed = True
        self.version = ref.version
        if self._config.salt_by_version:
            batching.salt = ref.version
        logger.info("weights of version %d, %s, from %s", ref.version, mode, ref.path)
        return True

    def step(self) -> list[Completion]:
        """Compute one batch: at most `prefill_chunk` prompt tokens, and one token of every request behind its prompt.

        Raises `GeneratorError` where logits are not finite.
        """
        begin = time.perf_counter()
        try:
            self._batching.admit(stop_set=self._stops.number_of, only_started=self._is_draining)
            segments = self._batching.plan()
            if segments is not None:
                self._compute(segments)
        finally:
            self._busy_s += time.perf_counter() - begin
        out, self._out = self._out, []
        return out

    def statistics(self) -> GeneratorStatistics:
        num_running = self._batching.rows.used.size
        return GeneratorStatistics(
            version=self.version,
            num_requests=self._counts["requests"],
            num_running=num_running,
            num_waiting=len(self._batching.waiting),
            num_sampled_tokens=self._counts["sampled"],
            num_prefilled_tokens=self._counts["prefilled"],
            num_cached_tokens=self._counts["cached"],
            num_evicted_tokens=self._batching.num_evicted,
            busy_s=self._busy_s,
        )

    def _compute(self, segments: Segments) -> None:
        rows = self._batching.rows
        token_ids = rows.tokens[segments.table_rows, segments.positions]
        rows.computed[segments.rows] += segments.counts
        is_last = rows.computed[segments.rows] == rows.length[segments.rows]
        sampled_rows, logit_rows = segments.rows[is_last], None
        if sampled_rows.size < token_ids.size:
            logit_rows = torch.from_numpy(np.cumsum(segments.counts)[is_last] - 1).to(self._device)
        logits = self._model.forward(torch.from_numpy(token_ids).to(self._device), segments, logit_rows=logit_rows)
        if sampled_rows.size:
            positions = rows.length[sampled_rows]
            how = SamplingRows(
                rows.temperatures[sampled_rows],
                rows.top_ps[sampled_rows],
                rows.top_ks[sampled_rows],
                rows.seeds[sampled_rows],
                positions,
            )
            self._append(sampled_rows, positions, sample(logits, how, ops=self._ops))

    def _append(self, at: Int32, positions: Int32, sampled: Sampled) -> None:
        """Write one sampled token to each of the rows `at`, and stream and end what is due."""
        if not np.isfinite(sampled.entropies).all():
            raise GeneratorError(f"weights of version {self.version} give logits that are not finite")
        rows = self._batching.rows
        rows.tokens[at, positions] = sampled.token_ids
        rows.logprobs[at, positions] = sampled.logprobs
        rows.entropies[at, positions] = sampled.entropies
        rows.versions[at, positions] = self.version
        lengths = positions + 1
        rows.length[at] = lengths
        self._counts["sampled"] += at.size
        is_stopped = (rows.stop_ids[at] == sampled.token_ids[:, None]).any(axis=1)
        is_flagged = self._stops.flags[rows.stop_set[at], sampled.token_ids]
        is_long = lengths >= rows.limit[at]
        is_due = is_stopped | is_flagged | is_long | (lengths >= rows.send_at[at])
        for i in np.flatnonzero(is_due).tolist():
            active = rows.owner(int(at[i]))
            if is_stopped[i] or (is_flagged[i] and self._has_stop_string(active)):
                self._end(active, reason="stop")
            elif is_long[i]:
                self._end(active, reason="length")
            elif lengths[i] >= rows.send_at[at[i]]:
                self._send(active)

    def _has_stop_string(self, active: ActiveRequest) -> bool:
        rows = self._batching.rows
        sampled = rows.tokens[active.row, active.num_prompt : rows.length[active.row]]
        return self._stops.is_complete(active.request.sampling.stop, sampled)

    def _end(self, active: ActiveRequest, *, reason: FinishReason) -> None:
        if active.row >= 0:
            self._batching.release(active.row, keep=True)
        else:
            self._batching.waiting.remove(active)
        del self._live[active.request.request_id]
        self._send(active, reason=reason)

    def _send(self, active: ActiveRequest, *, reason: FinishReason = "") -> None:
        """Stream what was sampled since the last chunk."""
        tokens, (logprobs, entropies, versions) = self._batching.rows.take_unsent(active)
        self._counts["cached"] += active.num_cached
        self._counts["prefilled"] += active.num_prefilled
        self._out.append(
            Completion(
                request_id=active.request.request_id,
                token_ids=tokens,
                logprobs=logprobs,
                entropy_low=entropies,
                entropy_high=entropies,
                versions=versions,
                finish_reason=reason,
                is_mixed=active.has_unsent_mixed,
                num_cached_tokens=active.num_cached,
                num_prefilled_tokens=active.num_prefilled,
            )
        )
        active.has_unsent_mixed = active.is_mixed
        active.num_cached = active.num_prefilled = 0


def _native(config: EmbeddedConfig, *, fits: bool) -> ctypes.CDLL | None:
    native = load_native() if fits and config.kernels != "torch" else None
    if native is None and config.kernels == "native":
        raise ConfigError("kernels 'native' need float32 on a CPU and a working C compiler")
    if native is None and config.deterministic:
        raise ConfigError(
            "deterministic needs the native kernels (float32 on a CPU, a C compiler): torch's attention "
            "sums in an order that depends on the batch"
        )
    return native


def _device(config: EmbeddedConfig) -> torch.device:
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, and torch sees no CUDA device")
    return torch.device(name)

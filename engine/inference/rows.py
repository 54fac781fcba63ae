"""Rows: everything the engine knows about running requests, as arrays, so that a step costs no Python per request.

Axes: R rows (running requests at most), W positions (grows with the longest request), K stop tokens.
"""

import numpy as np

from engine.inference.radix import RadixNode
from engine.types import Float32, GenerateRequest, Int32

_GROWTH = 256

Unsent = tuple[Float32, Float32, Int32]
"""Log-probabilities, entropies and versions of sampled tokens that were not streamed yet."""
_NOTHING: Unsent = (np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.int32))


class ActiveRequest:
    """One request between its submission and its last chunk, on a row while it runs."""

    def __init__(self, request: GenerateRequest, *, arrival: int) -> None:
        self.request = request
        self.arrival = arrival
        self.tokens: Int32 = request.token_ids
        """Prompt and sampled tokens; up to date only while the request is on no row."""
        self.unsent = _NOTHING
        """Up to date only while the request is on no row."""
        self.num_sent = 0
        """Sampled tokens that were streamed."""
        self.row = -1
        self.node: RadixNode | None = None
        """Locked while the request is on a row."""
        self.num_shared = 0
        """Leading positions whose slots belong to the radix cache."""
        self.has_started = False
        self.is_mixed = False
        """Its keys and values were computed by more than one version."""
        self.has_unsent_mixed = False
        self.num_cached = 0
        self.num_prefilled = 0
        """Both for the next chunk."""

    def __repr__(self) -> str:
        return f"ActiveRequest({self.request.request_id!r}, row {self.row}, {self.num_sent} sent)"

    @property
    def num_prompt(self) -> int:
        return self.request.token_ids.size


class Rows:
    """The arrays, and which of their rows are in use, in the order of arrival."""

    def __init__(self, max_rows: int) -> None:
        self.tokens: Int32 = np.zeros((max_rows, _GROWTH), dtype=np.int32)
        self.slots: Int32 = np.zeros((max_rows, _GROWTH), dtype=np.int32)
        self.logprobs: Float32 = np.zeros((max_rows, _GROWTH), dtype=np.float32)
        self.entropies: Float32 = np.zeros((max_rows, _GROWTH), dtype=np.float32)
        self.versions: Int32 = np.zeros((max_rows, _GROWTH), dtype=np.int32)
        self.length: Int32 = np.zeros(max_rows, dtype=np.int32)
        """[R] tokens known, prompt and sampled."""
        self.computed: Int32 = np.zeros(max_rows, dtype=np.int32)
        """[R] leading positions whose keys and values are there; smaller than `length` between steps."""
        self.allocated: Int32 = np.zeros(max_rows, dtype=np.int32)
        """[R] leading positions that have a slot."""
        self.limit: Int32 = np.zeros(max_rows, dtype=np.int32)
        """[R] length at which the request ends."""
        self.send_at: Int32 = np.zeros(max_rows, dtype=np.int32)
        """[R] length at which the next chunk is full."""
        self.temperatures: Float32 = np.ones(max_rows, dtype=np.float32)
        self.top_ps: Float32 = np.ones(max_rows, dtype=np.float32)
        self.top_ks: Int32 = np.zeros(max_rows, dtype=np.int32)
        self.seeds = np.zeros(max_rows, dtype=np.uint64)
        self.stop_ids: Int32 = np.full((max_rows, 1), -1, dtype=np.int32)
        """[R, K], padded with -1."""
        self.stop_set: Int32 = np.zeros(max_rows, dtype=np.int32)
        """[R] row of `StopStrings.flags`."""
        self.owners: list[ActiveRequest | None] = [None] * max_rows
        self.used: Int32 = np.zeros(0, dtype=np.int32)
        """Rows in use, oldest request first."""
        self._free = list(range(max_rows))[::-1]

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def owner(self, row: int) -> ActiveRequest:
        """The request on a row in use."""
        owner = self.owners[row]
        assert owner is not None, "only rows in use are asked for"
        return owner

    def place(self, active: ActiveRequest, *, stop_set: int) -> int:
        """Put a request on a free row; nothing is computed and nothing has a slot yet."""
        row = self._free.pop()
        sampling = active.request.sampling
        size, limit = active.tokens.size, active.num_prompt + sampling.max_new_tokens
        self._make_room(limit, len(sampling.stop_token_ids))
        active.row = row
        self.owners[row] = active
        self.tokens[row, :size] = active.tokens
        sent = active.num_prompt + active.num_sent
        self.logprobs[row, sent:size], self.entropies[row, sent:size], self.versions[row, sent:size] = active.unsent
        self.length[row] = size
        self.computed[row] = self.allocated[row] = 0
        self.limit[row] = limit
        self.send_at[row] = sent + active.request.stream_interval
        self.temperatures[row] = sampling.temperature
        self.top_ps[row] = sampling.top_p
        self.top_ks[row] = sampling.top_k
        self.seeds[row] = np.uint64(sampling.seed & 0xFFFF_FFFF_FFFF_FFFF)
        self.stop_ids[row] = -1
        self.stop_ids[row, : len(sampling.stop_token_ids)] = sampling.stop_token_ids
        self.stop_set[row] = stop_set
        self._order()
        return row

    def remove(self, row: int) -> None:
        """Free a row; the request keeps its tokens and what was not streamed yet, and may be placed again."""
        active = self.owner(row)
        active.tokens = self.tokens[row, : self.length[row]].copy()
        active.unsent = self._unsent(active)
        active.row = -1
        self.owners[row] = None
        self._free.append(row)
        self._order()

    def take_unsent(self, active: ActiveRequest) -> tuple[Int32, Unsent]:
        """Token ids of what was sampled and not streamed yet, and what is known of each; it is streamed now."""
        sent = active.num_prompt + active.num_sent
        if active.row < 0:
            tokens, unsent = active.tokens[sent:], active.unsent
            active.unsent = _NOTHING
        else:
            tokens, unsent = self.tokens[active.row, sent : self.length[active.row]].copy(), self._unsent(active)
            self.send_at[active.row] = self.length[active.row] + active.request.stream_interval
        active.num_sent += tokens.size
        return tokens, unsent

    def _unsent(self, active: ActiveRequest) -> Unsent:
        row = active.row
        new = slice(active.num_prompt + active.num_sent, int(self.length[row]))
        return self.logprobs[row, new].copy(), self.entropies[row, new].copy(), self.versions[row, new].copy()

    def _order(self) -> None:
        owners = sorted((owner for owner in self.owners if owner is not None), key=lambda owner: owner.arrival)
        self.used = np.array([owner.row for owner in owners], dtype=np.int32)

    def _make_room(self, width: int, num_stops: int) -> None:
        if width > self.tokens.shape[1]:
            extra = -(-width // _GROWTH) * _GROWTH - self.tokens.shape[1]
            for name in ("tokens", "slots", "logprobs", "entropies", "versions"):
                setattr(self, name, np.pad(getattr(self, name), ((0, 0), (0, extra))))
        if num_stops > self.stop_ids.shape[1]:
            extra = num_stops - self.stop_ids.shape[1]
            self.stop_ids = np.pad(self.stop_ids, ((0, 0), (0, extra)), constant_values=-1)

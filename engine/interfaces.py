"""The seams: small Protocols, each with a shipped fake (`inference.scripted`, `faults`)."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Protocol, runtime_checkable

from engine.reports import GeneratorStatistics, StepReport
from engine.turnstile import FIRST_COME, Precedence
from engine.types import (
    Batch,
    Completion,
    GenerateRequest,
    Prompt,
    ToolCall,
    ToolResult,
    ToolSpec,
    UpdateMode,
    WeightRef,
)


class Samples(Protocol):
    """What a path needs of a generator, or of many behind a router."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """Stream one segment; the last chunk, and only it, has a finish reason.

        Closing the stream early aborts the request. Raises `GeneratorError` when the backend fails; tokens already
        streamed stay valid, and a new request may continue from them.

        When the first `fork_after` tokens have been streamed, all of them but the last can be read from the cache by
        other requests. A backend whose cache reads what is running has nothing to do for it. One that shares only what
        has ended ends a part there, and with it a chunk. What follows `begins_anew`, there and wherever else a backend
        divides a request: a stop string that lies across is the caller's to find (`stop_seam`).
        """
        ...


class Generator(Samples, Protocol):
    """Token ids in, streamed token ids with behaviour log-probabilities, entropies and versions out."""

    async def abort(self, request_id: str) -> None:
        """End a request: its stream closes with `aborted`. Unknown or ended ids are ignored."""
        ...

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        """Return when every later token is sampled by `ref.version`.

        No later request reads a prefix that older weights computed. Running requests: `retract` re-prefills them,
        `in_place` keeps their KV and marks their tokens mixed, `drain` ends them before the update.
        """
        ...

    async def statistics(self) -> GeneratorStatistics: ...


@runtime_checkable
class Gated(Protocol):
    """A generator that others than its supervisor can reach: it refuses their requests until it is opened."""

    async def open(self) -> None: ...


class Trainer(Protocol):
    """Batches in, weights out. All ranks of a distributed learner stand behind one of these."""

    async def step(self, batch: Batch) -> StepReport:
        """One optimiser step. Raises `LearnerError`, with nothing applied, for a batch it cannot train on."""
        ...

    async def publish(self) -> WeightRef:
        """Write the present weights where generators can read them; valid until the second publish after it."""
        ...

    async def save(self, path: str) -> None:
        """Write a checkpoint atomically: weights, optimiser, schedule, version."""
        ...

    async def load(self, path: str) -> int:
        """Restore a checkpoint; returns its version. Raises `DataError` where it is torn or the shapes differ."""
        ...


class Prompts(Protocol):
    """A data set as the controller sees it."""

    def prompts(self, *, start: int = 0) -> Iterator[Prompt]:
        """Prompts from a position on; positions count rows, also those that are skipped."""
        ...

    def position_of(self, prompt: Prompt) -> int: ...


class ToolHost(Protocol):
    """Executes what the policy asks for. A failure of a tool is a result, never an exception."""

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools a model may call."""
        ...

    async def call(
        self, call: ToolCall, *, history: Sequence[ToolCall] = (), precedence: Precedence = FIRST_COME
    ) -> ToolResult:
        """Run one call under its deadline. `history` is what the path called before it; of calls that wait for the
        same permits the one of the smallest `precedence` goes first."""
        ...


class Tokenizer(Protocol):
    """What the renderer and the stop-string check need of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn or a text; the first is the one to append."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of `text` and nothing else: no BOS is added; special tokens written out are recognised."""
        ...

    def encode_plain(self, text: str) -> list[int]:
        """Tokens of `text` as data: special tokens written out stay ordinary characters."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, special ones included."""
        ...

    def apply_chat_template(self, messages: Sequence[dict[str, str]], *, tools: Sequence[ToolSpec] = ()) -> str:
        """Render messages up to and including the header of the assistant's turn."""
        ...

"""A policy small enough to be enumerated: every trajectory's probability and reward, and the gradient they make.

Tokens `A`, `B` and `STOP` are sampled, `EVEN` and `ODD` are results. A segment ends with `STOP`, which calls the tool,
or with its fourth token, which is an answer; the result says whether the segment's `B` are even or odd in number.
Behind the second result another call is cut off, and scored as it is. That makes 7,231 trajectories. The policy is a
table of logits, one row for each (results so far, the last of them, token before in the segment).

Axes: L trajectories, K sampled tokens of the longest, padded; G logits of the table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from engine.types import Float64, Int32

A, B, STOP, EVEN, ODD, PROMPT = range(6)
NUM_SAMPLED = 3
MAX_SEGMENT = 4
MAX_TURNS = 2
NUM_STATES = 15


@dataclass(frozen=True)
class State:
    """What the policy knows of its path."""

    turn: int = 0
    result: int = EVEN
    length: int = 0
    """Tokens of the present segment."""
    before: int = STOP
    """The last of them; `STOP` where there is none."""

    def then(self, token: int) -> "State":
        match token:
            case 3 | 4:
                return State(self.turn + 1, token)
            case 5:
                return self
            case _:
                return State(self.turn, self.result, self.length + 1, token)

    @property
    def row(self) -> int:
        """Of the table."""
        told = 0 if self.turn == 0 else 1 + 2 * (self.turn - 1) + (self.result - EVEN)
        return 3 * told + self.before

    @property
    def is_over(self) -> bool:
        """The segment has ended."""
        return self.length > 0 and (self.before == STOP or self.length == MAX_SEGMENT)


def state_of(tokens: Sequence[int] | Int32) -> State:
    state = State()
    for token in tokens:
        state = state.then(int(token))
    return state


def result_of(segment: Sequence[int]) -> int:
    return ODD if segment.count(B) % 2 else EVEN


def score(tokens: Sequence[int]) -> float:
    """The reward of what follows the prompt: what the first token behind a result is worth, and alternation."""
    pairs = list(pairwise(tokens))
    behind = sum({(EVEN, B): 1.0, (ODD, B): 1.5, (ODD, A): -1.0}.get(pair, 0.0) for pair in pairs)
    return behind + 0.5 * sum({x, y} == {A, B} for x, y in pairs) - 1.0


def _tables(*, num_older: int, distance: float) -> list[Float64]:
    """The policy's logits, and those of older versions around it.

    It likes to call, and is uncertain behind a `B` and certain behind an `A`: the entropy of a probe of two tokens
    depends on the first one, which the reward looks at.
    """
    rng = np.random.default_rng(0)
    now = rng.normal(0.0, 0.3, (NUM_STATES, NUM_SAMPLED))
    now[STOP::3] += (0.5, 0.5, -2.5)  # a segment begins
    now[A] += (0.0, 0.0, 2.5)
    now[B] += (0.0, 0.0, 2.0)
    now[3 + A :: 3] += (2.0, -1.0, -1.0)
    now[3 + B :: 3] += (0.0, 0.0, 0.3)
    return [now, *(now + rng.normal(0.0, distance, now.shape) for _ in range(num_older))]


TABLE, *OLDER = _tables(num_older=2, distance=0.3)
"""What is trained, and versions 0 and 1, which sample."""


class Enumerated:
    """All trajectories."""

    def __init__(self) -> None:
        every = [*_endings([], [], State())]
        width = max(len(steps) for steps, _ in every)

        def padded(values: list[list[int]]) -> Tensor:
            return torch.tensor([v + [0] * (width - len(v)) for v in values])

        self._rows_LK = padded([[row for row, _ in steps] for steps, _ in every])
        self._tokens_LK = padded([[token for _, token in steps] for steps, _ in every])
        self._is_sampled_LK = padded([[1] * len(steps) for steps, _ in every])
        self._scores_L = torch.tensor([score(tokens) for _, tokens in every], dtype=torch.float64)

    def logprobs(self, table: Tensor) -> Tensor:
        """[L, K] of the sampled tokens, 0 where there is none."""
        return table.log_softmax(-1)[self._rows_LK, self._tokens_LK] * self._is_sampled_LK

    def value(self, table: Tensor) -> Tensor:
        """The expected reward."""
        return (self.logprobs(table).sum(1).exp() * self._scores_L).sum()

    def gradient(self, table: Float64) -> Float64:
        """[G] of the expected reward, exactly."""
        leaf = torch.tensor(table, requires_grad=True)
        self.value(leaf).backward()
        assert leaf.grad is not None
        return leaf.grad.numpy().ravel()

    def prefix_gradient(self, table: Float64, behaviour: Float64) -> Float64:
        """[G] what REINFORCE expects where a token's weight is the product up to the token: it is credited with how
        `behaviour` goes on, not with how the policy would."""
        leaf = torch.tensor(table, requires_grad=True)
        now_LK, then_LK = self.logprobs(leaf), self.logprobs(torch.tensor(behaviour))
        weights_LK = (now_LK.detach() - then_LK).cumsum(1).exp()
        chance_L = then_LK.sum(1).exp()
        (chance_L * self._scores_L * (weights_LK * now_LK).sum(1)).sum().backward()
        assert leaf.grad is not None
        return leaf.grad.numpy().ravel()


def _endings(
    steps: list[tuple[int, int]], tokens: list[int], state: State
) -> Iterator[tuple[list[tuple[int, int]], list[int]]]:
    """(table row and token of every sampled token, all tokens) of each trajectory that goes on from here."""
    if state.is_over and (state.before != STOP or state.turn == MAX_TURNS):
        yield steps, tokens
    elif state.is_over:
        result = result_of(tokens[-state.length :])
        yield from _endings(steps, [*tokens, result], state.then(result))
    else:
        for token in range(NUM_SAMPLED):
            yield from _endings([*steps, (state.row, token)], [*tokens, token], state.then(token))

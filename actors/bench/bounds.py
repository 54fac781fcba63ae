"""Bounds: what other orders would have come to with the very work that a rollout did.

A finished tree is a plan of pieces: each segment takes a policy slot, each call a tool worker, for a known time behind
known others. `fraction_of_bound` of a rollout is what no order beats by what it took.

| bound         | what it is                                                                                        |
|---------------|---------------------------------------------------------------------------------------------------|
| `bound_s`     | the largest of slot-seconds per slot, worker-seconds per worker, and the longest path alone         |
| `clairvoyant_s` | list scheduling by the exact remaining work of each piece: an order that knows all lengths         |
| `blind_s`     | the mean makespan of the calls alone, all there from the beginning, begun in random order           |

List scheduling is a rule of thumb: on a small workload a first-come order may happen to end before `clairvoyant_s`.

`blind_s` is what no order can be expected to beat that does not know how long a call will take. Where lengths are
drawn independently of all that can be seen before, as here, calls begin in an order that has nothing to do with their
lengths, whatever rule chose it; having to wait for segments and for each other only adds to that. The longest call
begins in the middle on average, and everything waits for its end.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.bench.bench import Record
from engine.tree import Path, TreeBuilder
from engine.types import NodeKind

SLOT, WORKER = 0, 1
Piece = tuple[str, int, int, int]
"""Prompt, path, turn, and `SLOT` or `WORKER`: what is served at once, without interruption."""
NUM_SHUFFLES = 32


@dataclass
class Plan:
    """Pieces of work, and which of them must have ended before which others begin."""

    seconds: dict[Piece, float] = field(default_factory=dict[Piece, float])
    behind: defaultdict[Piece, list[Piece]] = field(default_factory=lambda: defaultdict(list))
    """For each piece those that wait for it."""
    num_before: defaultdict[Piece, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, piece: Piece, seconds: float, *, after: Sequence[Piece]) -> None:
        self.seconds[piece] = seconds
        for before in after:
            self.behind[before].append(piece)
            self.num_before[piece] += 1

    def remaining_s(self) -> dict[Piece, float]:
        """For each piece, the longest chain of pieces that begins with it."""
        found: dict[Piece, float] = {}
        # A piece is added behind all that it waits for, so backwards everything behind it is known.
        for piece in reversed(self.seconds):
            found[piece] = self.seconds[piece] + max((found[next_one] for next_one in self.behind[piece]), default=0.0)
        return found

    def schedule_s(self, places: Sequence[int], *, rank: Callable[[Piece], float]) -> float:
        """When all is done, if of what waits for a place the smallest rank always goes first."""
        free, lines = list(places), [list[tuple[float, Piece]]() for _ in places]
        missing = dict(self.num_before)
        running: list[tuple[float, Piece]] = []
        now = 0.0
        for piece in self.seconds:
            if not missing.get(piece):
                heapq.heappush(lines[piece[3]], (rank(piece), piece))
        while True:
            for kind, line in enumerate(lines):
                while free[kind] and line:
                    _, piece = heapq.heappop(line)
                    free[kind] -= 1
                    heapq.heappush(running, (now + self.seconds[piece], piece))
            if not running:
                return now
            now, ended = heapq.heappop(running)
            free[ended[3]] += 1
            for piece in self.behind[ended]:
                missing[piece] -= 1
                if not missing[piece]:
                    heapq.heappush(lines[piece[3]], (rank(piece), piece))


def plan_of(trees: Sequence[TreeBuilder], *, token_s: float) -> Plan:
    """The work of finished trees that fork at tool results, with one call a turn.

    A path follows its own pieces, a branch the call behind which it forked, and a supplement all paths before it.
    """
    plan = Plan()
    for tree in trees:
        name = tree.prompt.prompt_id
        frozen = tree.group().tree
        last: dict[int, Piece] = {}
        for path, trajectory in zip(tree.paths, tree.group().trajectories, strict=True):
            sizes = [0]
            for node in (frozen.nodes[index] for index in frozen.path_to(trajectory.leaf)):
                if node.kind is NodeKind.SAMPLED:
                    sizes[-1] += node.token_ids.size
                elif node.kind is NodeKind.OBSERVED:
                    sizes.append(0)
            first = sum(mark.length <= path.fork_length for mark in path.marks)
            after = _before(path, first, name=name, last=last)
            for turn in range(first, len(sizes)):
                segment, call = (name, path.number, turn, SLOT), (name, path.number, turn, WORKER)
                plan.add(segment, sizes[turn] * token_s, after=after)
                last[path.number], after = segment, [call]
                if turn < len(sizes) - 1:
                    plan.add(call, path.results[turn].duration_s, after=[segment])
    return plan


def _before(path: Path, first: int, *, name: str, last: Mapping[int, Piece]) -> list[Piece]:
    if path.forked_from >= 0:
        return [(name, path.forked_from, first - 1, WORKER)]
    return list(last.values()) if path.is_supplement else []


def bounds(plan: Plan, *, num_slots: int, num_workers: int, longest_s: float) -> Record:
    """The three bounds; `longest_s` is the longest path alone."""
    places = (num_slots, num_workers)
    work = [sum(s for piece, s in plan.seconds.items() if piece[3] == kind) / places[kind] for kind in (SLOT, WORKER)]
    remaining_s = plan.remaining_s()
    calls = [seconds for piece, seconds in plan.seconds.items() if piece[3] == WORKER]
    return {
        "bound_s": max(*work, longest_s),
        "clairvoyant_s": plan.schedule_s(places, rank=lambda piece: -remaining_s[piece]),
        "blind_s": max(blind_s(calls, num_workers=num_workers), work[SLOT]),
    }


def blind_s(calls: Sequence[float], *, num_workers: int) -> float:
    """Mean over random orders of when the last call ends, if a worker takes the next one as soon as it is free.

    >>> 3.2 < blind_s([3.0, 1.0, 1.0, 1.0], num_workers=2) < 3.8          # the long one begins at 0, 0, 1 or 1
    True
    """
    rng = random.Random(0)
    ends: list[float] = []
    for _ in range(NUM_SHUFFLES):
        workers = [0.0] * num_workers
        for seconds in rng.sample(calls, k=len(calls)):
            heapq.heapreplace(workers, workers[0] + seconds)
        ends.append(max(workers))
    return float(np.mean(ends))

"""Standing: where the requests of one tree stand in the lines before policy and tools, and what the run learns of it.

First come the trees that were admitted first, cohort by cohort: they hold the slots that the next step waits for, and
since only so many cohorts are alive at once, nobody waits for ever. Within a cohort the longest expected remaining work
goes first (see `outlook`). Behind a tree that its forks are not expected to fill stand the paths that will start when
its last one has ended: they count as work behind each of its paths, by the share of the missing ones.

What a request waits with is what was expected when it came. Where lengths are drawn alike for all, as in
`arpo bench async`, no order without foresight can be expected to beat first come, first served by more than a little
(`fraction_of_blind`); this one gained nothing there (`speedup_of_longest_expected`), so it is no default.
"""

import asyncio
from collections.abc import Sequence

from engine.events import AnyTreeEvent, ForkConsidered, PathEnded, TokensSampled, ToolFinished, ToolRequested
from engine.outlook import Outlook
from engine.tree import Path, TreeBuilder
from engine.turnstile import FIRST_COME, Precedence
from engine.types import RolloutStatus


class Standing:
    """One tree's: it reads the tree, and the room that is left, and changes neither."""

    def __init__(self, tree: TreeBuilder, *, size: int, cohort: int, outlook: Outlook | None) -> None:
        """M=`size`; without an outlook everybody is served as they come."""
        self._tree = tree
        self._size = size
        self._cohort = cohort
        self._outlook = outlook
        self._spoke: dict[int, float] = {}
        """When each path that is in the middle of a segment sampled last."""

    def before_policy(self, path: Path) -> Precedence:
        """Of the request for the next segment."""
        if self._outlook is None:
            return FIRST_COME
        return self._precedence(self._outlook, self._outlook.remaining_s(len(path.marks)))

    def before_tool(self, path: Path, tools: Sequence[str]) -> Precedence:
        """Of each call of a turn that calls these tools."""
        if self._outlook is None:
            return FIRST_COME
        return self._precedence(self._outlook, self._outlook.behind_calls_s(len(path.marks), tools))

    def learn(self, event: AnyTreeEvent) -> None:
        """Take an event that has just been applied to the tree."""
        if self._outlook is None:
            return
        match event:
            case TokensSampled():
                self._time_tokens(self._outlook, event)
            case ToolRequested():
                path = self._tree.paths[event.path]
                if event.index == path.num_observed_calls:
                    self._end_segment(self._outlook, path, is_call=True)
            case PathEnded() if event.status is not RolloutStatus.FAILED:
                self._end_segment(self._outlook, self._tree.paths[event.path], is_call=False)
            case ToolFinished() if event.result.was_answered:
                self._outlook.saw_call(event.result.name, event.result.duration_s)
            case ForkConsidered():
                self._outlook.saw_result(is_fork_wanted=event.is_wanted)
            case _:
                pass

    def _precedence(self, outlook: Outlook, own_s: float) -> Precedence:
        return self._cohort, -(own_s + self._shortage(outlook) * outlook.remaining_s(0))

    def _shortage(self, outlook: Outlook) -> float:
        """The share of the missing paths that no fork is expected to start."""
        missing = self._size - len(self._tree.paths)
        if missing <= 0:
            return 0.0
        forks = sum(outlook.forks(len(path.marks)) for path in self._tree.live_paths)
        return max(0.0, 1.0 - forks / missing)

    def _time_tokens(self, outlook: Outlook, event: TokensSampled) -> None:
        """From one chunk to the next it is the pace; the first one of a request, which tells of its prompt, may have
        waited in a line."""
        now = asyncio.get_running_loop().time()
        before = self._spoke.pop(event.path, None)
        is_first = event.num_prefilled_tokens + event.num_cached_tokens > 0
        if before is not None and not is_first and event.token_ids.size:
            outlook.saw_tokens(event.token_ids.size, now - before)
        if not event.finish_reason:
            self._spoke[event.path] = now

    def _end_segment(self, outlook: Outlook, path: Path, *, is_call: bool) -> None:
        outlook.saw_segment(len(path.marks), num_tokens=path.length - path.segment_start, is_call=is_call)

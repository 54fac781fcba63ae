"""A journal whose beginning was deleted (`journal.retain`), as a report can read it: whole trees only."""

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from engine.events import AnyEvent, BatchTaken, PromptAdmitted, TreeEvent, WeightsPublished


class WholeTrees:
    """Asked of each event in order: what of it is not about prompts that were admitted before the first one."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, event: AnyEvent) -> AnyEvent | None:
        match event:
            case PromptAdmitted():
                self._known.add(event.prompt_id)
                return event
            case TreeEvent() if event.prompt_id not in self._known:
                return None
            case BatchTaken() | WeightsPublished():
                return replace(event, prompt_ids=tuple(name for name in event.prompt_ids if name in self._known))
            case _:
                return event


def whole_trees(events: Iterable[AnyEvent]) -> Iterator[AnyEvent]:
    """The events without those of prompts that were admitted before the first one."""
    known = WholeTrees()
    for event in events:
        if (whole := known.of(event)) is not None:
            yield whole

"""A journal whose beginning was deleted (`journal.retain`), as a report can read it: whole trees only."""

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from engine.events import AnyEvent, BatchTaken, PromptAdmitted, TreeEvent, WeightsPublished


def whole_trees(events: Iterable[AnyEvent]) -> Iterator[AnyEvent]:
    """The events without those of prompts that were admitted before the first one."""
    known: set[str] = set()
    for event in events:
        match event:
            case PromptAdmitted():
                known.add(event.prompt_id)
                yield event
            case TreeEvent() if event.prompt_id not in known:
                pass
            case BatchTaken() | WeightsPublished():
                yield replace(event, prompt_ids=tuple(name for name in event.prompt_ids if name in known))
            case _:
                yield event

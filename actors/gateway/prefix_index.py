"""PrefixIndex: which conversations have said exactly this so far; by tenant, then by the client's own scope."""

from collections.abc import Sequence

from actors.gateway.conversation import Conversation, Point

_Key = tuple[str, str, bytes]


class PrefixIndex:
    """Conversations by the digests of their points; a conversation of another tenant is never found."""

    def __init__(self) -> None:
        self._found: dict[_Key, list[Conversation]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, conversation: Conversation, points: Sequence[Point]) -> None:
        for key in _keys(conversation, points):
            self._found.setdefault(key, []).append(conversation)

    def remove(self, conversation: Conversation, points: Sequence[Point]) -> None:
        for key in _keys(conversation, points):
            others = [other for other in self._found.get(key, ()) if other is not conversation]
            if others:
                self._found[key] = others
            else:
                self._found.pop(key, None)

    def longest(self, tenant: str, scope: str, prefixes: list[bytes]) -> tuple[Conversation, Point] | None:
        """The conversation that shares the longest prefix with a history; of equals, one that can simply go on.

        What is asked again from the very start is nobody's: it begins a conversation.
        """
        for size in range(len(prefixes), 0, -1):
            matches = [
                (conversation, point)
                for conversation in reversed(self._found.get((tenant, scope, prefixes[size - 1]), ()))
                if (point := conversation.match(prefixes)) is not None and point.num_messages == size
            ]
            if matches:
                free = (found for found in matches if not found[0].is_busy and found[0].stands_at(found[1]))
                return next(free, matches[0])
        return None


def _keys(conversation: Conversation, points: Sequence[Point]) -> list[_Key]:
    first = conversation.points[0]
    return [(conversation.tenant, conversation.scope, point.digest) for point in points if point is not first]

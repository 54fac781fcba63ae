"""The account of a log: for each request, how much of its prompt could be read from the cache, and how much was.

Requests are taken in the order in which they were sent, for each server and weight version. A request has *in KV* its
prompt once its first chunk has arrived, and from then on its streamed tokens but the last, whose keys and values are
computed with the next one. Then, of the prompt of a request,

    shareable   other requests had in KV when it was sent
    settled     and none of those is needed for it that was still running then
    own         and none that was sent before the update to this version, and retracted
    claimed     requests sent before it had in KV or were going to have: what would be computed once if all waited
    reused      the server says it read (`num_cached_tokens` of the first chunk)
    stale       was reused and computed by no request of this version: 0, or old KV was read

each but the last two at most one less than the prompt, because the last token is always computed, and rounded down to
whole pages. What another request is still prefilling is not shareable: a request may wait for it, and then more is
reused than shareable, or compute it again, and then less than claimed. A server that schedules ahead has the last token
of a request as well; that is neither shareable nor stale.

An update retracts: a request that runs on is computed anew, and with its first chunk of the new version its prompt and
what was streamed of it are in the KV of that version too. A request whose first chunk was under way during an update is
*straddling*: its cached tokens may be of either version.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.bench.prefix_log import Happening, Received, Sent, Updating
from engine.types import Version

_Node = dict[int, "_Node"]


class Prefixes:
    """Token sequences and all their prefixes.

    >>> prefixes = Prefixes()
    >>> _ = prefixes.extend(prefixes.root, [1, 2, 3])
    >>> prefixes.match([1, 2, 9]), prefixes.match([2]), prefixes.num_tokens
    (2, 0, 3)
    """

    def __init__(self) -> None:
        self.root: _Node = {}
        self.num_tokens = 0
        """What a cache needs room for."""

    def extend(self, node: _Node, tokens: Sequence[int]) -> _Node:
        """Put `tokens` behind the prefix that ends in `node`; returns where they end."""
        for token in tokens:
            child = node.get(token)
            if child is None:
                child = node[token] = {}
                self.num_tokens += 1
            node = child
        return node

    def match(self, tokens: Sequence[int]) -> int:
        """Length of the longest prefix of `tokens` that is known."""
        node = self.root
        for length, token in enumerate(tokens):
            child = node.get(token)
            if child is None:
                return length
            node = child
        return len(tokens)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One answered request; all counts are tokens of its prompt."""

    number: int
    server: str
    version: Version
    """Of its first token."""
    prompt: int
    shareable: int
    settled: int
    own: int
    claimed: int
    reused: int
    stale: int
    is_straddling: bool

    @property
    def missed(self) -> int:
        """Shareable, and computed again."""
        return max(self.shareable - self.reused, 0)

    @property
    def missed_of_retracted(self) -> int:
        """Missed where only requests had it that an update had retracted."""
        return max(self.shareable - max(self.own, self.reused), 0)

    @property
    def missed_of_running(self) -> int:
        """Missed where, of the others, only requests had it that were still running."""
        return max(self.own - max(self.settled, self.reused), 0)

    @property
    def twice(self) -> int:
        """Computed, although a request sent before it had computed it or was going to."""
        return max(self.claimed - self.reused, 0)


@dataclass(frozen=True, kw_only=True)
class Account:
    """All answered requests, in the order of their first chunks."""

    readings: list[Reading]
    num_distinct: dict[str, int]
    """By server: what a cache that never forgets holds in the end, over all versions."""


def account(happenings: Sequence[Happening], *, page_sizes: Mapping[str, int]) -> Account:
    """Replay a log. A request that was never answered with a token is left out."""
    replay = _Replay(happenings, page_sizes)
    for happening in happenings:
        match happening:
            case Sent():
                replay.send(happening)
            case Received():
                replay.receive(happening)
            case Updating():
                replay.update(happening)
    return replay.account()


@dataclass(kw_only=True)
class _Request:
    """One request, with all that the log knows of it, and how far the replay is with it."""

    number: int
    server: str
    prompt: list[int]
    tokens: list[int]
    """Prompt and all that was sampled."""
    versions: list[Version]
    """Of what was sampled."""
    num_known: int
    """Tokens so far; more than the prompt once the first chunk is here."""
    is_sent: bool = False
    is_ended: bool = False
    is_straddling: bool = False
    num_updates: int = 0
    """Updates of its server that had begun when it was sent."""
    num_claims: int = 0
    """Claims of its server and version when it was sent, its own included."""
    found: dict[str, int] = field(default_factory=dict)
    """What was found when it was sent."""
    ends: dict[tuple[Version, str], tuple[_Node, int]] = field(default_factory=dict)
    """Where it stands in the prefixes of a version, and how many of its tokens those hold."""


class _Books:
    """What one server has computed with one version."""

    def __init__(self) -> None:
        self.prefixes = {name: Prefixes() for name in ("shareable", "settled", "own", "claimed")}
        self.possible = Prefixes()
        """As claimed, with the last tokens."""
        self.claims: list[list[int]] = []


class _Replay:
    def __init__(self, happenings: Sequence[Happening], page_sizes: Mapping[str, int]) -> None:
        self._page_sizes = page_sizes
        self._requests = _requests(happenings)
        self._books: defaultdict[tuple[str, Version], _Books] = defaultdict(_Books)
        self._updates: defaultdict[str, list[Version]] = defaultdict(list)
        """By server: those that have begun."""
        self._updating: set[str] = set()
        self._readings: list[Reading] = []

    def account(self) -> Account:
        num_distinct = dict.fromkeys(self._page_sizes, 0)
        for (server, _), books in self._books.items():
            num_distinct[server] += books.possible.num_tokens
        return Account(readings=self._readings, num_distinct=num_distinct)

    def send(self, sent: Sent) -> None:
        request = self._requests[sent.number]
        if not request.versions:
            return
        books = self._books[request.server, request.versions[0]]
        for name, prefixes in books.prefixes.items():
            request.found[name] = self._readable(request, prefixes.match(request.prompt))
        request.found["possible"] = books.possible.match(request.prompt)
        request.is_sent = True
        request.is_straddling = request.server in self._updating
        request.num_updates = len(self._updates[request.server])
        self._claim(books, request)
        request.num_claims = len(books.claims)

    def receive(self, received: Received) -> None:
        request, chunk = self._requests[received.number], received.chunk
        request.is_ended = chunk.finish_reason != ""
        if not chunk.token_ids.size:
            return
        if request.num_known == len(request.prompt):
            self._read(request, reused=chunk.num_cached_tokens)
        before = request.num_known
        request.num_known += chunk.token_ids.size
        version = int(chunk.versions[-1])
        prefixes = self._books[request.server, version].prefixes
        self._compute(request, prefixes["shareable"], (version, "shareable"), request.num_known - 1)
        if version not in self._updates[request.server][request.num_updates :]:
            self._compute(request, prefixes["own"], (version, "own"), request.num_known - 1)
        if request.is_ended:
            self._compute(request, prefixes["settled"], (version, "settled"), request.num_known - 1)
        elif (version, "settled") not in request.ends:
            # The prompt, or what was computed anew behind an update.
            self._compute(request, prefixes["settled"], (version, "settled"), before)

    def update(self, updating: Updating) -> None:
        if updating.is_over:
            self._updating.discard(updating.server)
            return
        self._updating.add(updating.server)
        self._updates[updating.server].append(updating.version)
        books = self._books[updating.server, updating.version]
        for request in self._requests.values():
            is_later = updating.version in request.versions and request.versions[0] != updating.version
            if request.server == updating.server and request.is_sent and is_later:
                self._claim(books, request)

    def _read(self, request: _Request, *, reused: int) -> None:
        """The first chunk of a request is here."""
        version, found = request.versions[0], request.found
        # Whoever was sent while this one waited may have computed something for it.
        later = self._books[request.server, version].claims[request.num_claims :]
        possible = max([found.pop("possible"), *(_common(request.prompt, other) for other in later)])
        self._readings.append(
            Reading(
                number=request.number,
                server=request.server,
                version=version,
                prompt=len(request.prompt),
                reused=reused,
                stale=max(reused - possible, 0),
                is_straddling=request.is_straddling or len(self._updates[request.server]) > request.num_updates,
                **found,
            )
        )

    def _readable(self, request: _Request, length: int) -> int:
        page_size = self._page_sizes[request.server]
        return min(length, len(request.prompt) - 1) // page_size * page_size

    @staticmethod
    def _claim(books: _Books, request: _Request) -> None:
        claimed = books.prefixes["claimed"]
        claimed.extend(claimed.root, request.tokens[:-1])
        books.possible.extend(books.possible.root, request.tokens)
        books.claims.append(request.tokens)

    @staticmethod
    def _compute(request: _Request, prefixes: Prefixes, key: tuple[Version, str], length: int) -> None:
        node, known = request.ends.get(key, (prefixes.root, 0))
        request.ends[key] = prefixes.extend(node, request.tokens[known:length]), length


def _requests(happenings: Sequence[Happening]) -> dict[int, _Request]:
    """All requests with all their tokens, before the replay."""
    requests: dict[int, _Request] = {}
    for happening in happenings:
        match happening:
            case Sent(number, server, request):
                prompt = request.token_ids.tolist()
                requests[number] = _Request(
                    number=number, server=server, prompt=prompt, tokens=[*prompt], versions=[], num_known=len(prompt)
                )
            case Received(number, chunk):
                requests[number].tokens += chunk.token_ids.tolist()
                requests[number].versions += chunk.versions.tolist()
            case Updating():
                pass
    return requests


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    size = min(len(one), len(other))
    return next((i for i in range(size) if one[i] != other[i]), size)

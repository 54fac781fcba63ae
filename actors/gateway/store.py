"""Store: the open conversations of all tenants, and what becomes of them.

begin ─> (a turn) ─> end_turn ─> ... ─> finish, reward ─> ended ─> the tree, when nothing in it lives
                                        discard, idle: ended without a reward, never trained
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

from actors.gateway.config import ServeConfig
from actors.gateway.conversation import Conversation, Point
from actors.gateway.dialogue import Dialogue
from actors.gateway.errors import ApiError, no_such_conversation, refused
from actors.gateway.prefix_index import PrefixIndex
from actors.gateway.records import NAME, Records
from actors.gateway.said import TurnAsked
from actors.gateway.traffic_tree import TrafficTree, prompt_id_of
from actors.gateway.traffic_trees import Hearers, TrafficTrees
from engine.types import Int32, Reward, ToolCall, Version

logger = logging.getLogger(__name__)


class Store:
    """All verbs return at once and raise `ApiError`; of another tenant nothing is found, whatever its name."""

    def __init__(
        self, config: ServeConfig, *, records: Records, version: Callable[[], Version], hears: Hearers
    ) -> None:
        """`version` is that of the weights that sample now; `hears` is told what becomes of trees."""
        self._config = config
        self._records = records
        self._version = version
        self._hears = hears
        self._trees = TrafficTrees(config, records=records, hears=self._hears)
        self._named: dict[tuple[str, str], Conversation] = {}
        self._counts: Counter[str] = Counter()
        self._index = PrefixIndex()

    def __len__(self) -> int:
        return len(self._named)

    @property
    def version(self) -> Version:
        """Of the weights that sample now."""
        return self._version()

    # -- turns ------------------------------------------------------------------------------------------------

    def begin(self, tenant: str, asked: TurnAsked, dialogue: Dialogue) -> Conversation:
        """The conversation that this history belongs to, with all of it in tokens, and busy until `end_turn`.

        Raises `DataError` where the model's template refuses the messages; nothing has changed then.
        """
        prefixes = asked.prefixes
        if asked.conversation is None:
            found = self._index.longest(tenant, asked.scope, prefixes)
            if found is None:
                conversation = self._open(tenant, f"conv-{uuid4().hex}", asked, dialogue, prefixes)
                conversation.is_anonymous = True
            else:
                conversation = self._go_on(*found, asked, dialogue, prefixes, is_named=False)
        else:
            conversation = self._named_turn(tenant, asked.conversation, asked, dialogue, prefixes)
        conversation.is_busy = True
        self._touch(conversation)
        return conversation

    def end_turn(
        self,
        conversation: Conversation,
        digest: bytes | None,
        *,
        calls: tuple[ToolCall, ...] = (),
        call_ids: tuple[str, ...] = (),
    ) -> None:
        """A turn is over; `digest` is that of the history with the answer, None for a turn that was cut off."""
        conversation.is_busy = False
        if conversation.is_over:
            return
        conversation.num_turns += 1
        self._touch(conversation)
        if digest is not None:
            asked = conversation.points[-1]
            length = conversation.path.length
            point = Point(digest, asked.num_messages + 1, asked.length, length, True, calls, call_ids)
            self._add_point(conversation, point)
        elif conversation.is_anonymous and len(conversation.points) == 1:
            # Nobody knows its name, and its history holds no answer by which it could be found again.
            self._end(conversation, detail="its first turn failed")
        conversation.tree.flush()

    def _named_turn(
        self, tenant: str, name: str, asked: TurnAsked, dialogue: Dialogue, prefixes: list[bytes]
    ) -> Conversation:
        if not NAME.fullmatch(name):
            raise refused("a conversation is called by letters, digits, _, . and -, 64 at most", param="conversation")
        conversation = self._named.get((tenant, name))
        if conversation is None:
            return self._open(tenant, name, asked, dialogue, prefixes)
        conversation.check_free()
        point = conversation.match(prefixes)
        if point is not None:
            return self._go_on(conversation, point, asked, dialogue, prefixes, is_named=True)
        # Rewritten from its very beginning on: a tree of its own, under the same name.
        tokens = _opening(asked, dialogue)
        self._drop_path(conversation)
        self._plant(conversation, tokens, asked, prefixes)
        return conversation

    def _go_on(
        self,
        conversation: Conversation,
        point: Point,
        asked: TurnAsked,
        dialogue: Dialogue,
        prefixes: list[bytes],
        *,
        is_named: bool,
    ) -> Conversation:
        builder, path = conversation.tree.builder, conversation.path
        segment = builder.token_ids(path)[point.start : point.length]
        new = asked.messages[point.num_messages :]
        results = dialogue.results(new, calls=point.calls, call_ids=point.call_ids) if point.calls else []
        tokens = dialogue.behind(new, segment=segment, results=results)
        if conversation.is_busy or conversation.is_finished or not conversation.stands_at(point):
            conversation = self._branch(conversation, point, is_named=is_named)
        if point.is_answer:
            conversation.tree.observe(conversation.path, tokens, calls=point.calls, results=results)
            length = conversation.path.length
            self._add_point(conversation, Point(prefixes[-1], len(prefixes), length, length, False))
        return conversation

    def _branch(self, conversation: Conversation, point: Point, *, is_named: bool) -> Conversation:
        """Go on from an earlier point: under the same name a rewrite, without one another conversation."""
        if not is_named:
            return self._fork(conversation, point, f"conv-{uuid4().hex}")
        path = conversation.tree.fork(conversation.path, point.length)
        self._drop_path(conversation, keep=conversation.up_to(point))
        conversation.path = path
        return conversation

    # -- the life of a conversation ---------------------------------------------------------------------------

    def get(self, tenant: str, name: str) -> Conversation:
        """An open conversation. Raises `ApiError` 404."""
        conversation = self._named.get((tenant, name))
        if conversation is None:
            raise no_such_conversation(name)
        return conversation

    def fork(self, tenant: str, name: str) -> Conversation:
        """A second conversation with the same history so far."""
        conversation = self.get(tenant, name)
        conversation.check_free()
        return self._fork(conversation, conversation.points[-1], f"conv-{uuid4().hex}")

    def finish(self, tenant: str, name: str) -> Conversation:
        """Nothing more will be said; a reward that was given is final now, and otherwise it may still come."""
        conversation = self.get(tenant, name)
        conversation.check_free()
        conversation.is_finished = True
        self._touch(conversation)
        if conversation.reward is not None:
            self._end(conversation)
        return conversation

    def reward(self, tenant: str, name: str, reward: Reward, *, is_final: bool) -> Conversation:
        """What a conversation was worth; a final reward ends it."""
        conversation = self.get(tenant, name)
        conversation.check_idle()
        conversation.reward = reward
        self._touch(conversation)
        if is_final or conversation.is_finished:
            self._end(conversation)
        return conversation

    def discard(self, tenant: str, name: str) -> None:
        """End a conversation; it is never trained."""
        conversation = self.get(tenant, name)
        conversation.reward = None
        self._end(conversation, detail="discarded")

    def delete(self, tenant: str, name: str) -> None:
        """Forget a conversation and the trees it took part in, on disk as well; it may have ended long ago.

        What forks share cannot be told apart, so others in these trees are not recorded further, and never trained.
        """
        conversation = self._named.get((tenant, name))
        deleted = set(self._records.delete(tenant, name))
        if conversation is None and not deleted:
            raise no_such_conversation(name)
        if conversation is not None:
            deleted.add(conversation.tree.name)
        for tree in deleted:
            self._trees.delete(tree)
            self._hears.on_delete(prompt_id_of(tenant, tree))
        if conversation is not None:
            self._end(conversation, detail="deleted")

    def sweep(self) -> None:
        """End what was left alone for too long."""
        oldest = asyncio.get_running_loop().time() - self._config.idle_s
        for conversation in [c for c in self._named.values() if c.touched_at < oldest and not c.is_busy]:
            self._end(conversation, detail="idle")
        self._trees.close_waiting(since=oldest)

    async def expire(self) -> None:
        """Remove records that are too old, beside everything else: there may be a million of them."""
        if removed := await asyncio.to_thread(self._records.expire, retention_s=self._config.retention_s):
            logger.info("%d records were older than serve.retention_s", removed)

    # -- inside -----------------------------------------------------------------------------------------------

    def _open(
        self, tenant: str, name: str, asked: TurnAsked, dialogue: Dialogue, prefixes: list[bytes]
    ) -> Conversation:
        self._check_room(tenant)
        tokens = _opening(asked, dialogue)
        tree = self._tree_for(tenant, tokens, asked)
        conversation = Conversation(name, tenant, asked.scope, tree, tree.start())
        self._register(conversation, [Point(prefixes[-1], len(prefixes), tokens.size, tokens.size, False)])
        return conversation

    def _plant(self, conversation: Conversation, tokens: Int32, asked: TurnAsked, prefixes: list[bytes]) -> None:
        tree = conversation.tree = self._tree_for(conversation.tenant, tokens, asked)
        conversation.path = tree.start()
        conversation.points = [Point(prefixes[-1], len(prefixes), tokens.size, tokens.size, False)]
        self._records.name(conversation.tenant, conversation.name, tree.name)

    def _tree_for(self, tenant: str, tokens: Int32, asked: TurnAsked) -> TrafficTree:
        question = asked.messages[-1].content if asked.messages else asked.text or ""
        return self._trees.for_prompt(tenant, tokens, question=question, version=self._version())

    def _fork(self, conversation: Conversation, point: Point, name: str) -> Conversation:
        self._check_room(conversation.tenant)
        path = conversation.tree.fork(conversation.path, point.length)
        child = Conversation(name, conversation.tenant, conversation.scope, conversation.tree, path)
        child.is_off_policy = conversation.is_off_policy
        self._register(child, conversation.up_to(point))
        return child

    def _register(self, conversation: Conversation, points: list[Point]) -> None:
        self._named[conversation.tenant, conversation.name] = conversation
        self._counts[conversation.tenant] += 1
        conversation.points = points
        self._index.add(conversation, points)
        self._records.name(conversation.tenant, conversation.name, conversation.tree.name)
        self._touch(conversation)

    def _add_point(self, conversation: Conversation, point: Point) -> None:
        conversation.points.append(point)
        self._index.add(conversation, [point])

    def _drop_path(self, conversation: Conversation, *, keep: list[Point] | None = None) -> None:
        """The client's history is not the recorded one any more: what it left is not trained."""
        conversation.num_rewrites += 1
        conversation.reward = None  # it was for what the client has taken back
        self._index.remove(conversation, conversation.points)
        conversation.tree.end(conversation.path, reward=None, detail="the client rewrote its history")
        if keep is None:
            self._trees.settle(conversation.tree)
        else:
            conversation.points = keep
            self._index.add(conversation, keep)

    def _end(self, conversation: Conversation, *, detail: str = "") -> None:
        conversation.is_over = True
        del self._named[conversation.tenant, conversation.name]
        self._counts[conversation.tenant] -= 1
        self._index.remove(conversation, conversation.points)
        reward = conversation.reward
        if reward is not None and not conversation.is_whole:
            reward, detail = None, "its last turn was cut off"
        if reward is not None and conversation.is_off_policy:
            reward, detail = None, "sampled otherwise than the learner assumes"
        conversation.tree.end(conversation.path, reward=reward, detail=detail)
        self._trees.settle(conversation.tree)

    def _touch(self, conversation: Conversation) -> None:
        conversation.touched_at = asyncio.get_running_loop().time()

    def _check_room(self, tenant: str) -> None:
        """A client that names no conversation ends none either: the one that was quiet for longest makes room."""
        if self._counts[tenant] < self._config.max_conversations:
            return
        quiet = [one for one in self._named.values() if one.tenant == tenant and one.may_make_room]
        if quiet:
            self._end(min(quiet, key=lambda one: one.touched_at), detail="it made room for another one")
        else:
            raise ApiError(429, "too many open conversations: finish some", code="too_many_conversations")


def _opening(asked: TurnAsked, dialogue: Dialogue) -> Int32:
    return dialogue.text(asked.text) if asked.text is not None else dialogue.opening(asked.messages)

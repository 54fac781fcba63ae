"""The tree against a naive model that keeps whole token lists for each path: same tokens, shared nodes, one form."""

from dataclasses import dataclass, field
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.errors import JournalError
from engine.events import (
    AnyTreeEvent,
    ForkConsidered,
    Forked,
    Observed,
    PathEnded,
    PathStarted,
    Rewarded,
    TokensSampled,
    ToolFinished,
    ToolRequested,
)
from engine.tree import TreeBuilder
from engine.types import Node, NodeKind, Prompt, Reward, RolloutStatus, ToolCall, ToolResult, TrajectoryGroup

PROMPT = [1, 2, 3]


def prompt() -> Prompt:
    ids = np.array(PROMPT, np.int32)
    return Prompt(prompt_id="p", epoch=0, row=0, token_ids=ids, question="", ground_truth="")


def sampled(path: int, tokens: list[int], *, reason: str = "") -> TokensSampled:
    """Tokens whose log-probability, entropies and version all follow from the token, so that they can be checked."""
    ids = np.array(tokens, np.int32)
    return TokensSampled(
        prompt_id="p",
        path=path,
        token_ids=ids,
        logprobs=(-ids).astype(np.float32),
        entropy_low=ids.astype(np.float32),
        entropy_high=(ids + 2).astype(np.float32),
        versions=ids % 5,
        finish_reason=reason,  # type: ignore[arg-type]
    )


def observed(path: int, tokens: list[int]) -> Observed:
    return Observed(prompt_id="p", path=path, token_ids=np.array(tokens, np.int32))


@dataclass
class NaivePath:
    """Every token of a path, with who wrote it; nothing is shared."""

    tokens: list[int]
    kinds: list[str]
    uids: list[int]
    """Identity of each token: equal in two paths exactly where one inherited it from the other."""
    marks: list[int] = field(default_factory=list[int])

    def copy(self, length: int) -> "NaivePath":
        marks = [mark for mark in self.marks if mark <= length]
        return NaivePath(self.tokens[:length], self.kinds[:length], self.uids[:length], marks)


def columns(group: TrajectoryGroup, leaf: int) -> dict[str, list[int]]:
    """What the frozen nodes of a path say of each of its tokens."""
    nodes = [group.tree.nodes[i] for i in group.tree.path_to(leaf)]
    said: dict[str, list[int]] = {"kind": [], "logprob": [], "entropy": [], "version": []}
    for node in nodes:
        blank = [0] * node.token_ids.size
        is_sampled = node.kind is NodeKind.SAMPLED
        said["kind"] += [node.kind.value] * node.token_ids.size  # type: ignore[list-item]
        said["logprob"] += [round(-x) for x in node.logprobs.tolist()] if is_sampled else blank
        said["entropy"] += [round(x) - 1 for x in node.entropies.tolist()] if is_sampled else blank
        said["version"] += node.versions.tolist() if is_sampled else blank
        if not is_sampled:
            assert node.logprobs.size == node.versions.size == node.entropies.size == 0
    return said


class TreeAgainstNaive(RuleBasedStateMachine):
    """Any order of sampling, observing and forking, anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[AnyTreeEvent] = []
        self.naive: list[NaivePath] = []
        self.next_uid = 0

    @initialize()
    def begin(self) -> None:
        self.tree = TreeBuilder(prompt())

    def emit(self, event: AnyTreeEvent) -> None:
        self.events.append(event)
        self.tree.apply(event)

    def uids(self, count: int) -> list[int]:
        self.next_uid += count
        return list(range(self.next_uid - count, self.next_uid))

    @precondition(lambda self: len(self.naive) < 8)
    @rule()
    def start(self) -> None:
        self.emit(PathStarted(prompt_id="p", path=len(self.naive)))
        self.naive.append(NaivePath(list(PROMPT), ["prompt"] * len(PROMPT), [-1, -2, -3]))

    @precondition(lambda self: self.naive)
    @rule(data=st.data(), tokens=st.lists(st.integers(1, 99), max_size=5))
    def sample(self, data: st.DataObject, tokens: list[int]) -> None:
        path = data.draw(st.integers(0, len(self.naive) - 1))
        self.emit(sampled(path, tokens))
        self.grow(path, tokens, "sampled")

    @precondition(lambda self: self.naive)
    @rule(data=st.data(), tokens=st.lists(st.integers(1, 99), min_size=1, max_size=4))
    def observe(self, data: st.DataObject, tokens: list[int]) -> None:
        path = data.draw(st.integers(0, len(self.naive) - 1))
        self.emit(observed(path, tokens))
        self.grow(path, tokens, "observed")
        self.naive[path].marks.append(len(self.naive[path].tokens))

    @precondition(lambda self: 0 < len(self.naive) < 8)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        path = data.draw(st.integers(0, len(self.naive) - 1))
        length = data.draw(st.integers(len(PROMPT), len(self.naive[path].tokens)))
        self.emit(Forked(prompt_id="p", path=path, child=len(self.naive), length=length))
        self.naive.append(self.naive[path].copy(length))

    def grow(self, path: int, tokens: list[int], kind: str) -> None:
        naive = self.naive[path]
        naive.tokens += tokens
        naive.kinds += [kind] * len(tokens)
        naive.uids += self.uids(len(tokens))

    @invariant()
    def every_path_is_exactly_its_tokens(self) -> None:
        group = self.tree.group()
        for path, naive, trajectory in zip(self.tree.paths, self.naive, group.trajectories, strict=True):
            assert self.tree.token_ids(path).tolist() == naive.tokens
            assert group.tree.token_ids(trajectory.leaf).tolist() == naive.tokens
            assert path.length == len(naive.tokens)
            assert [mark.length for mark in path.marks] == naive.marks
            assert self.tree.segment(path).tolist() == naive.tokens[path.segment_start :]
            said = columns(group, trajectory.leaf)
            own = [token if kind == "sampled" else 0 for token, kind in zip(naive.tokens, naive.kinds, strict=True)]
            assert said["kind"] == naive.kinds
            assert said["logprob"] == said["entropy"] == own
            assert said["version"] == [token % 5 for token in own]

    @invariant()
    def a_shared_token_lies_in_one_node_and_others_share_none(self) -> None:
        group = self.tree.group()
        homes: dict[int, tuple[int, int]] = {}
        places: set[tuple[int, int]] = set()
        for naive, trajectory in zip(self.naive, group.trajectories, strict=True):
            where = [
                (index, offset)
                for index in group.tree.path_to(trajectory.leaf)
                for offset in range(group.tree.nodes[index].token_ids.size)
            ]
            for uid, place in zip(naive.uids, where, strict=True):
                assert homes.setdefault(uid, place) == place
            places |= set(where)
        assert len(places) == len(homes), "two different tokens never share a place"

    @invariant()
    def nodes_come_parents_first_and_all_of_them_are_used(self) -> None:
        group = self.tree.group()
        assert all(node.parent < index for index, node in enumerate(group.tree.nodes))
        assert [index for index, node in enumerate(group.tree.nodes) if node.parent < 0] == [0]
        if self.naive:
            used = {i for t in group.trajectories for i in group.tree.path_to(t.leaf)}
            assert used == set(range(len(group.tree.nodes)))

    @invariant()
    def a_replay_of_the_events_is_the_same_tree(self) -> None:
        again = TreeBuilder(prompt())
        for event in self.events:
            again.apply(event)
        assert plain(again.group()) == plain(self.tree.group())


def plain(group: TrajectoryGroup) -> list[tuple[object, ...]]:
    def row(node: Node) -> tuple[object, ...]:
        arrays = (node.token_ids, node.logprobs, node.versions, node.entropies)
        return (node.parent, node.kind, *(array.tolist() for array in arrays))

    return [*map(row, group.tree.nodes), *((t.path, t.leaf, t.forked_from, t.fork_length) for t in group.trajectories)]


TestTreeAgainstNaive = TreeAgainstNaive.TestCase
TestTreeAgainstNaive.settings = settings(max_examples=60, stateful_step_count=25)


@given(data=st.data())
@settings(max_examples=60)
def test_the_frozen_form_does_not_depend_on_which_sibling_grew_first(data: st.DataObject) -> None:
    """The same paths, with the chunks of different paths delivered in any order."""
    script: dict[int, list[AnyTreeEvent]] = {}
    # Branches begin inside the leader's tokens, two of them at one place, one off another branch; one at the prompt.
    common = [PathStarted(prompt_id="p", path=0), sampled(0, [10, 11, 12, 13]), observed(0, [20, 21])]
    places = [(0, 1, 5), (0, 2, 5), (1, 3, 4)]
    forks = [Forked(prompt_id="p", path=path, child=child, length=length) for path, child, length in places]
    forks += [PathStarted(prompt_id="p", path=4), PathStarted(prompt_id="p", path=5)]
    for path in range(6):
        tokens = data.draw(st.lists(st.integers(30, 60), min_size=1, max_size=6))
        cuts = sorted(data.draw(st.sets(st.integers(0, len(tokens)), max_size=3)) | {0, len(tokens)})
        script[path] = [sampled(path, tokens[a:b]) for a, b in pairwise(cuts)]
    in_order = [event for path in range(6) for event in script[path]]
    order = data.draw(st.permutations([path for path in range(6) for _ in script[path]]))
    queues = {path: iter(events) for path, events in script.items()}
    shuffled = [next(queues[path]) for path in order]

    forms: list[object] = []
    for growth in (in_order, shuffled):
        tree = TreeBuilder(prompt())
        for event in [*common, *forks, *growth]:
            tree.apply(event)
        forms.append(plain(tree.group()))
    assert forms[0] == forms[1]


def test_the_frozen_form_does_not_depend_on_how_far_the_parent_was_when_its_branch_started() -> None:
    fork = Forked(prompt_id="p", path=0, child=1, length=5)
    growth = [sampled(0, [12, 13]), observed(0, [20]), sampled(0, [30])]
    forms: list[object] = []
    for delay in range(len(growth) + 1):
        tree = TreeBuilder(prompt())
        started = [PathStarted(prompt_id="p", path=0), sampled(0, [10, 11])]
        for event in [*started, *growth[:delay], fork, *growth[delay:], sampled(1, [99])]:
            tree.apply(event)
        forms.append(plain(tree.group()))
    assert all(form == forms[0] for form in forms)


def test_a_branch_inside_a_node_cuts_it_and_shares_the_front() -> None:
    tree = TreeBuilder(prompt())
    for event in (
        PathStarted(prompt_id="p", path=0),
        sampled(0, [10, 11, 12, 13]),
        Forked(prompt_id="p", path=0, child=1, length=5),
        sampled(0, [14]),
        sampled(1, [99]),
    ):
        tree.apply(event)
    group = tree.group()
    assert [(n.parent, n.token_ids.tolist()) for n in group.tree.nodes] == [
        (-1, [1, 2, 3]),
        (0, [10, 11]),
        (1, [12, 13, 14]),
        (1, [99]),
    ]
    assert group.trajectories[1].forked_from == 0
    assert group.trajectories[1].fork_length == 5
    assert group.num_forks == 1


def test_a_branch_inherits_the_calls_whose_results_it_has_seen_and_no_others() -> None:
    tree = TreeBuilder(prompt())
    calls = [ToolCall(name=name, arguments={}) for name in ("search", "python")]
    results = [ToolResult(name="search", text="x"), ToolResult(name="python", text="y", status="error")]
    tree.apply(PathStarted(prompt_id="p", path=0))
    for index in (0, 1):
        tree.apply(sampled(0, [10 + index], reason="stop"))
        tree.apply(ToolRequested(prompt_id="p", path=0, call=calls[index], index=index))
        tree.apply(ToolFinished(prompt_id="p", path=0, index=index, result=results[index]))
        tree.apply(observed(0, [20 + index]))
    tree.apply(Forked(prompt_id="p", path=0, child=1, length=tree.paths[0].marks[0].length))
    child = tree.paths[1]
    assert child.calls == calls[:1]
    assert child.results == {0: results[0]}
    assert child.num_observed_calls == 1
    assert child.finish_reason == ""
    group = tree.group()
    assert [t.num_tool_calls for t in group.trajectories] == [2, 1]
    assert [t.num_multi_tool for t in group.trajectories] == [1, 1], "a tool that failed did not really run"
    assert (group.num_tool_calls_requested, group.num_tool_calls_executed) == (2, 2)


def test_wanted_forks_in_a_row_are_counted_and_inherited() -> None:
    tree = TreeBuilder(prompt())
    tree.apply(PathStarted(prompt_id="p", path=0))
    for observation, is_wanted in enumerate([True, True, False, True], start=1):
        tree.apply(observed(0, [20]))
        considered = {"length": 4, "entropy_low": 0.0, "entropy_high": 0.0, "baseline": 0.0, "score": 0.0, "coin": 0.0}
        tree.apply(
            ForkConsidered(prompt_id="p", path=0, observation=observation, is_wanted=is_wanted, **considered)  # type: ignore[arg-type]
        )
        assert tree.paths[0].streak == [1, 2, 0, 1][observation - 1]
    tree.apply(Forked(prompt_id="p", path=0, child=1, length=tree.paths[0].length))
    assert tree.paths[1].streak == 1
    assert tree.paths[1].num_considered == 4


def test_entropies_are_those_of_one_segment_across_its_nodes() -> None:
    tree = TreeBuilder(prompt())
    for event in (
        PathStarted(prompt_id="p", path=0),
        sampled(0, [10, 11, 12]),
        Forked(prompt_id="p", path=0, child=1, length=4),
        observed(0, [20, 21]),
        sampled(0, [30]),
    ):
        tree.apply(event)
    path = tree.paths[0]
    low, high = tree.entropies(path, 3, 20)
    assert low.tolist() == [10, 11, 12], "it stops where the tool result begins"
    assert high.tolist() == [12, 13, 14]
    assert tree.entropies(path, 4, 1)[0].tolist() == [11]
    assert tree.entropies(path, path.segment_start, 5)[0].tolist() == [30]
    assert tree.entropies(tree.paths[1], 3, 5)[0].tolist() == [10]


def test_paths_are_numbered_in_the_order_of_their_creation() -> None:
    tree = TreeBuilder(prompt())
    with pytest.raises(JournalError, match="path 1 created where 0 comes next"):
        tree.apply(PathStarted(prompt_id="p", path=1))
    tree.apply(PathStarted(prompt_id="p", path=0))
    with pytest.raises(JournalError, match="path 2 created where 1 comes next"):
        tree.apply(Forked(prompt_id="p", path=0, child=2, length=3))
    with pytest.raises(ValueError, match="no position 9 on a path of 3 tokens"):
        tree.apply(Forked(prompt_id="p", path=0, child=1, length=9))


def test_status_and_reward_end_up_in_the_trajectory() -> None:
    tree = TreeBuilder(prompt())
    tree.apply(PathStarted(prompt_id="p", path=0))
    tree.apply(PathStarted(prompt_id="p", path=1))
    tree.apply(Rewarded(prompt_id="p", path=0, reward=Reward(score=0.5, is_correct=True)))
    assert [path.number for path in tree.live_paths] == [0, 1]
    tree.apply(PathEnded(prompt_id="p", path=0, status=RolloutStatus.TRUNCATED))
    assert [path.number for path in tree.live_paths] == [1]
    trajectories = tree.group().trajectories
    assert (trajectories[0].status, trajectories[0].reward.score) == (RolloutStatus.TRUNCATED, 0.5)
    assert trajectories[1].status is RolloutStatus.FAILED, "what never ended is never trained"

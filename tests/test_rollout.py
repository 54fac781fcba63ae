"""Rollouts of one tree: what is sampled, where it forks, what it costs."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.branching import Aepo, AnyBranching, Arpo, Chain, ForkAt, Official, TreeGrpo, Uniform
from engine.budget import Account
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.errors import GeneratorError
from engine.events import AnyTreeEvent, ForkConsidered, Forked, TokensSampled, ToolFinished
from engine.faults import FaultyGenerator
from engine.granting import Late, Paper, Proposal, Ranked
from engine.inference.scripted import Script, ScriptedGenerator, random_script
from engine.interfaces import Generator
from engine.renderer import RendererConfig, make_renderer
from engine.rollout import TreeRollout
from engine.rollout_config import BudgetConfig, RolloutConfig, SamplingConfig
from engine.stop_seam import StopSeam
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import make_bpe_tokenizer, make_word_tokenizer
from engine.tree import TreeBuilder
from engine.types import (
    Completion,
    GenerateRequest,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    SamplingParams,
    ToolCall,
    TrajectoryGroup,
)
from tools.faults import ScriptedTools

WORDS = ["who", "is", "it", "page", "one", "two", "three", "note", "Page", "1:"]
REWARD = msgspec.json.encode(Reward(score=1.0)).decode()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    folder = tmp_path_factory.mktemp("words")
    make_word_tokenizer(folder, words=WORDS)
    return load_tokenizer(folder)


class Bench:
    """One tree with scripted neighbours, and everything that happened to it."""

    def __init__(
        self,
        tokenizer: HfTokenizer,
        script: Callable[[GenerateRequest], Script],
        *,
        config: RolloutConfig,
        latency_s: float = 0.0,
        prompt_id: str = "e0-r0",
        cohort: Cohort | None = None,
        answers: dict[str, object] | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.tools = ScriptedTools(answers or {"search": "two", "reward": REWARD}, latency_s=latency_s)
        self.renderer = make_renderer(RendererConfig(), tokenizer=tokenizer, specs=self.tools.specs)
        ids = np.array(tokenizer.encode("who is it"), np.int32)
        self.prompt = Prompt(
            prompt_id=prompt_id, epoch=0, row=0, token_ids=ids, question="who is it", ground_truth="two"
        )
        self.generator = generator or ScriptedGenerator(script)
        self.cohort = cohort or new_cohort(config)
        self.tree = TreeBuilder(self.prompt)
        self.events: list[AnyTreeEvent] = []
        self.config = config
        self.vocab_size = tokenizer.vocab_size

    def run(self) -> TrajectoryGroup:
        return run_virtual(self.grow())

    async def grow(self) -> TrajectoryGroup:
        rollout = TreeRollout(
            self.tree,
            config=self.config,
            seed=0,
            cohort=self.cohort,
            generator=self.generator,
            tools=self.tools,
            renderer=self.renderer,
            vocab_size=self.vocab_size,
            emit=self.events.append,
        )
        return await rollout.run()


def new_cohort(config: RolloutConfig, *, size: int = 1, is_logical: bool = False) -> Cohort:
    run = Account("run")
    return Cohort(
        0,
        size=size,
        granting=config.granting,
        leaves=Account("leaves", limit=config.budget.leaves_per_cohort, parent=run),
        tool_calls=Account("calls", limit=config.budget.calls_per_cohort, parent=run),
        is_logical=is_logical,
    )


def searching(
    tokenizer: HfTokenizer, *, turns: int = 2, level: Callable[[int], float] = lambda turn: 1.0, body: int = 6
) -> Callable[[GenerateRequest], Script]:
    """A policy that searches `turns` times and then answers; its entropy depends on the turn."""
    result = tokenizer.encode("</result>")[-1]

    def script(request: GenerateRequest) -> Script:
        tokens = request.token_ids.tolist()
        turn = tokens.count(result)
        last = max((i for i, t in enumerate(tokens) if t == result), default=2)
        end = "<search> page </search>" if turn < turns else "<answer> two </answer>"
        ids = tokenizer.encode("one " * body + end) + ([] if turn < turns else [tokenizer.eos_token_ids[0]])
        # A request in the middle of a segment goes on where the segment stands.
        ids = ids[len(tokens) - last - 1 :]
        return Script(token_ids=ids, entropies=[level(turn)] * len(ids), token_s=0.01)

    return script


def config(branching: AnyBranching, *, size: int = 4, **budget: int) -> RolloutConfig:
    return RolloutConfig(size=size, branching=branching, budget=BudgetConfig(**budget), stream_interval=2)


def check_token_fidelity(group: TrajectoryGroup, bench: Bench) -> None:
    """Invariant 1: the nodes of a path concatenate to exactly what was sent and streamed."""
    for trajectory in group.trajectories:
        tokens = group.tree.token_ids(trajectory.leaf)
        path = bench.tree.paths[trajectory.path]
        assert np.array_equal(tokens, bench.tree.token_ids(path))
    sent = {request.request_id: request.token_ids for request in bench.generator.requests}
    for request_id, tokens in sent.items():
        number = int(request_id.split("/")[1])
        assert np.array_equal(bench.tree.token_ids(bench.tree.paths[number])[: tokens.size], tokens)


def test_chain_gives_independent_trajectories_that_fork_only_at_the_prompt(tokenizer: HfTokenizer) -> None:
    bench = Bench(tokenizer, searching(tokenizer), config=config(Chain()))
    group = bench.run()
    assert len(group.trajectories) == 4
    assert group.num_forks == 0
    assert group.num_tool_calls_requested == group.num_tool_calls_executed == 8
    assert all(t.status is RolloutStatus.COMPLETED and t.reward.score == 1.0 for t in group.trajectories)
    check_token_fidelity(group, bench)


def test_a_rise_of_entropy_behind_a_result_forks_and_a_fall_does_not(tokenizer: HfTokenizer) -> None:
    rising = Bench(
        tokenizer,
        searching(tokenizer, level=lambda turn: [0.5, 1.0, 0.1][turn]),
        config=config(Arpo(initial=1, probe_tokens=3)),
    )
    group = rising.run()
    considered = [e for e in rising.events if isinstance(e, ForkConsidered)]
    first = [e for e in considered if e.path == 0]
    assert [(e.observation, e.is_wanted) for e in first] == [(1, True), (2, False)]
    assert np.isclose(first[0].entropy_low, 1.0)
    assert np.isclose(first[0].baseline, 0.5)
    assert group.num_forks == 1
    assert len(group.trajectories) == 4
    check_token_fidelity(group, rising)


def test_a_branch_inherits_the_probe_and_the_call_behind_it(tokenizer: HfTokenizer) -> None:
    bench = Bench(
        tokenizer,
        searching(tokenizer, level=lambda turn: float(turn)),
        config=config(Arpo(initial=1, probe_tokens=3), size=2),
    )
    group = bench.run()
    fork = next(e for e in bench.events if isinstance(e, Forked))
    parent, child = bench.tree.paths
    assert fork.length == parent.marks[0].length + 3
    assert child.calls[0] is parent.calls[0]
    assert child.marks[0] == parent.marks[0]
    # One search is shared, and each of the two paths makes another one.
    assert group.num_tool_calls_executed == 3
    shared = np.concatenate([node.token_ids for node in group.tree.nodes])
    assert shared.size < sum(group.tree.token_ids(t.leaf).size for t in group.trajectories)


def test_fork_at_tool_result_samples_the_probe_anew(tokenizer: HfTokenizer) -> None:
    policy = Arpo(initial=1, probe_tokens=3, fork_at="tool_result")
    bench = Bench(tokenizer, searching(tokenizer, level=lambda turn: float(turn)), config=config(policy, size=2))
    bench.run()
    fork = next(e for e in bench.events if isinstance(e, Forked))
    assert fork.length == bench.tree.paths[0].marks[0].length


def test_parent_keeps_streaming_while_its_branch_starts(tokenizer: HfTokenizer) -> None:
    bench = Bench(
        tokenizer,
        searching(tokenizer, turns=1, level=lambda turn: float(turn), body=20),
        config=config(Arpo(initial=1, probe_tokens=2), size=2),
    )
    bench.run()
    where = next(i for i, e in enumerate(bench.events) if isinstance(e, Forked))
    after = {e.path for e in bench.events[where:] if isinstance(e, TokensSampled)}
    assert after == {0, 1}
    requests_of_parent = [r for r in bench.generator.requests if r.request_id.startswith("e0-r0/0/")]
    assert len(requests_of_parent) == 2, "the parent's second segment is one request, not interrupted by the fork"


def test_leader_goes_first_and_the_others_follow_its_first_tokens(tokenizer: HfTokenizer) -> None:
    bench = Bench(tokenizer, searching(tokenizer), config=config(Chain(), size=3))
    bench.run()
    first_sample = next(i for i, e in enumerate(bench.events) if isinstance(e, TokensSampled))
    starts = [i for i, e in enumerate(bench.events) if type(e).__name__ == "PathStarted"]
    assert starts[0] < first_sample < starts[1]


def test_missing_trajectories_start_together(tokenizer: HfTokenizer) -> None:
    quiet = Arpo(initial=1, probe_tokens=3)
    bench = Bench(tokenizer, searching(tokenizer, level=lambda turn: 1.0 - turn * 0.1), config=config(quiet, size=6))
    group = bench.run()
    assert group.num_forks == 0
    supplements = [i for i, e in enumerate(bench.events) if getattr(e, "is_supplement", False)]
    assert supplements == list(range(supplements[0], supplements[0] + 5))


def test_late_forks_wait_for_the_end_of_all_paths_and_share_the_places_that_are_left(tokenizer: HfTokenizer) -> None:
    settings = RolloutConfig(
        size=6,
        branching=Arpo(initial=2, probe_tokens=2, fork_at="tool_result"),
        granting=Late(),
        stream_interval=2,
    )
    # Unsure behind the last two of three results.
    levels = [1.0, 1.0, 2.0, 2.0]
    bench = Bench(tokenizer, searching(tokenizer, turns=3, level=lambda turn: levels[turn]), config=settings)
    group = bench.run()
    kinds = [type(e).__name__ for e in bench.events]
    assert kinds.index("Forked") > [i for i, name in enumerate(kinds) if name == "PathEnded"][1]
    forks = [e for e in bench.events if isinstance(e, Forked)]
    behind = [[mark.length for mark in bench.tree.paths[e.path].marks].index(e.length) + 1 for e in forks]
    assert behind == [3, 3, 2, 2]
    assert group.num_tool_calls_executed == 6 + 2, "a branch behind the last result makes no call"
    check_token_fidelity(group, bench)


@pytest.mark.parametrize(("is_filled", "num_paths"), [(True, 6), (False, 1)])
def test_a_tree_without_wanted_forks_is_filled_up_where_that_is_asked_for(
    tokenizer: HfTokenizer, is_filled: bool, num_paths: int
) -> None:
    settings = RolloutConfig(
        size=6, branching=Arpo(initial=1, probe_tokens=2), granting=Late(), supplements=is_filled, stream_interval=2
    )
    bench = Bench(tokenizer, searching(tokenizer, level=lambda turn: 1.0), config=settings)
    assert len(bench.run().trajectories) == num_paths


@pytest.mark.parametrize(("scores", "num_paths"), [([1.0, 1.0, 0.0], 2), ([1.0, 0.0, 0.0], 6)])
@pytest.mark.parametrize(
    "branching",
    [Arpo(initial=2, probe_tokens=2), TreeGrpo(initial=2, expand=2)],
    ids=["supplements", "expansions"],
)
def test_a_tree_whose_first_paths_came_to_one_score_gets_no_more_of_them(
    tokenizer: HfTokenizer, branching: AnyBranching, scores: list[float], num_paths: int
) -> None:
    settings = RolloutConfig(size=6, branching=branching, grow="mixed", stream_interval=2)
    rewards = [msgspec.json.encode(Reward(score=score)).decode() for score in scores]
    answers: dict[str, object] = {"search": "two", "reward": rewards}
    bench = Bench(tokenizer, searching(tokenizer), config=settings, answers=answers)
    group = bench.run()
    assert len(group.trajectories) == num_paths


def test_leaves_and_calls_never_exceed_their_budgets(tokenizer: HfTokenizer) -> None:
    limits = {"calls_per_path": 2, "calls_per_prompt": 5}
    bench = Bench(
        tokenizer,
        searching(tokenizer, turns=5, level=lambda turn: float(turn)),
        config=config(Uniform(initial=2, probe_tokens=2, rate=1.0), size=8, **limits),
    )
    group = bench.run()
    assert len(group.trajectories) == 8
    assert group.num_tool_calls_executed == 5
    executed = [sum(r.was_executed for r in path.results.values()) for path in bench.tree.paths]
    assert max(executed) <= 2
    assert any(r.status == "refused" for path in bench.tree.paths for r in path.results.values())
    assert all(t.num_tool_calls == 5 for t in group.trajectories), "a refused path is told so and goes on"


def test_failed_requests_are_continued_from_the_paths_own_tokens(tokenizer: HfTokenizer) -> None:
    script = searching(tokenizer)
    broken: set[int] = set()

    def flaky(request: GenerateRequest) -> Script:
        said = script(request)
        if request.token_ids.size not in broken and len(broken) < 2:
            broken.add(request.token_ids.size)
            return msgspec.structs.replace(said, fails_after=4)
        return said

    bench = Bench(tokenizer, flaky, config=config(Chain(), size=1))
    group = bench.run()
    clean = Bench(tokenizer, script, config=config(Chain(), size=1)).run()
    assert group.trajectories[0].status is RolloutStatus.COMPLETED
    assert np.array_equal(group.tree.token_ids(1), clean.tree.token_ids(1))
    check_token_fidelity(group, bench)


def test_a_generator_that_keeps_failing_is_data_and_siblings_go_on(tokenizer: HfTokenizer) -> None:
    script = searching(tokenizer)

    def flaky(request: GenerateRequest) -> Script:
        is_second = request.request_id.split("/")[1] == "1"
        return msgspec.structs.replace(script(request), fails_after=0 if is_second else None)

    group = Bench(tokenizer, flaky, config=config(Chain(), size=3)).run()
    assert [t.status for t in group.trajectories] == ["completed", "failed", "completed"]
    assert "scripted failure" in group.trajectories[1].reward.reason


def test_a_generator_that_says_nothing_fails_the_path_and_its_siblings_go_on(tokenizer: HfTokenizer) -> None:
    inner = ScriptedGenerator(searching(tokenizer))
    stalling = FaultyGenerator(inner, lambda r: "stall" if r.request_id.split("/")[1] == "1" else "")
    group = Bench(tokenizer, searching(tokenizer), config=config(Chain(), size=3), generator=stalling).run()
    assert [t.status for t in group.trajectories] == ["completed", "failed", "completed"]
    assert group.trajectories[1].reward.reason == "no chunk within 600 s"


def test_a_request_that_can_never_run_fails_its_path_at_once(tokenizer: HfTokenizer) -> None:
    inner = ScriptedGenerator(searching(tokenizer))
    asked: list[str] = []

    def plan(request: GenerateRequest) -> str:
        path = request.request_id.split("/")[1]
        asked.append(path)
        return "refuse" if path == "1" else ""

    settings = config(Chain(), size=3)
    bench = Bench(tokenizer, searching(tokenizer), config=settings, generator=FaultyGenerator(inner, plan))
    group = bench.run()
    assert [t.status for t in group.trajectories].count(RolloutStatus.FAILED) == 1
    assert asked.count("1") == 1, "trying again is of no use"
    assert "scripted refusal" in group.trajectories[1].reward.reason


def test_a_reward_that_fails_makes_a_failed_trajectory(tokenizer: HfTokenizer) -> None:
    bench = Bench(tokenizer, searching(tokenizer), config=config(Chain(), size=2), answers={"search": "two"})
    assert [t.status for t in bench.run().trajectories] == ["failed", "failed"]


@pytest.mark.parametrize("said", ["0.5", '{"score":null}', "no JSON"])
def test_a_reward_that_is_no_reward_makes_a_failed_trajectory(tokenizer: HfTokenizer, said: str) -> None:
    answers: dict[str, object] = {"search": "two", "reward": said}
    group = Bench(tokenizer, searching(tokenizer), config=config(Chain(), size=1), answers=answers).run()
    assert group.trajectories[0].status is RolloutStatus.FAILED
    assert group.trajectories[0].reward.reason.startswith("reward: ")


class Listener:
    """A cohort's member that only remembers what it was granted."""

    room = 4
    is_idle = False

    def __init__(self, prompt_id: str, *, rounds: list[int]) -> None:
        self.prompt_id = prompt_id
        self.rounds = rounds
        self.granted: list[Proposal] = []

    def rank(self, proposal: Proposal, *, place: int) -> None:
        pass

    def grant(self, proposal: Proposal) -> None:
        self.granted.append(proposal)

    def fill(self) -> None:
        raise AssertionError("not idle")


def test_a_tree_that_is_cancelled_decides_nothing_for_the_others_and_one_that_ends_does() -> None:
    for how, expected in ((Cohort.abandon, 0), (Cohort.leave, 1)):
        cohort = new_cohort(RolloutConfig(granting=Ranked(window=1, fraction=1.0)), size=2, is_logical=True)
        ahead, behind = Listener("a", rounds=[1]), Listener("b", rounds=[0])
        cohort.join(ahead)
        cohort.join(behind)
        cohort.propose(Proposal(prompt_id="a", path=0, length=9, observation=1, score=0.5))
        assert not ahead.granted, "the other tree may still propose in this round"
        how(cohort, behind)
        assert len(ahead.granted) == expected


def test_a_path_out_of_tokens_is_truncated(tokenizer: HfTokenizer) -> None:
    short = RolloutConfig(size=1, branching=Chain(), sampling=SamplingConfig(max_response_tokens=5))
    group = Bench(tokenizer, searching(tokenizer), config=short).run()
    assert group.trajectories[0].status is RolloutStatus.TRUNCATED
    assert group.tree.token_ids(group.trajectories[0].leaf).size == 3 + 5


def test_a_path_with_too_many_turns_is_truncated(tokenizer: HfTokenizer) -> None:
    limited = RolloutConfig(size=1, branching=Chain(), sampling=SamplingConfig(max_turns=1))
    group = Bench(tokenizer, searching(tokenizer), config=limited).run()
    assert group.trajectories[0].status is RolloutStatus.TRUNCATED
    assert group.num_tool_calls_executed == 1


def test_official_decides_at_the_result_from_the_segment_before_it(tokenizer: HfTokenizer) -> None:
    policy = Official(initial=1, entropy_weight=100.0, branch_probability=0.0)
    bench = Bench(
        tokenizer, searching(tokenizer, level=lambda turn: [0.1, 5.0, 0.0][turn]), config=config(policy, size=2)
    )
    bench.run()
    considered = [e for e in bench.events if isinstance(e, ForkConsidered) and e.path == 0]
    assert np.allclose([e.entropy_low for e in considered], [0.1, 5.0])
    assert [e.is_wanted for e in considered] == [False, True]
    assert considered[1].length == bench.tree.paths[0].marks[1].length


def test_tree_grpo_expands_random_steps_of_each_initial_tree(tokenizer: HfTokenizer) -> None:
    bench = Bench(tokenizer, searching(tokenizer), config=config(TreeGrpo(initial=2, expand=2), size=6))
    group = bench.run()
    forks = [e for e in bench.events if isinstance(e, Forked)]
    assert len(forks) == 4
    steps = {mark.length for path in bench.tree.paths for mark in path.marks}
    assert all(fork.length in steps for fork in forks)
    assert len(group.trajectories) == 6


def test_aepo_chooses_its_first_paths_after_its_monitor_has_ended(tokenizer: HfTokenizer) -> None:
    policy = Aepo(probe_tokens=3, balance=100.0, tau=2.0)
    sure_of_tools = Bench(
        tokenizer, searching(tokenizer, level=lambda turn: 1.0 if turn == 0 else 0.0), config=config(policy, size=5)
    )
    sure_of_tools.run()
    assert [p.is_supplement for p in sure_of_tools.tree.paths] == [False] * 5
    unsure_of_tools = Bench(
        tokenizer, searching(tokenizer, level=lambda turn: float(turn)), config=config(policy, size=5)
    )
    unsure_of_tools.run()
    assert [p.is_supplement for p in unsure_of_tools.tree.paths] == [False] + [True] * 4


class Letters:
    """A dialect whose tokens are single characters."""

    stop_strings = ("</search>",)

    def text(self, token_ids: np.ndarray) -> str:
        return "".join(chr(t) for t in token_ids)

    @staticmethod
    def ids(text: str) -> np.ndarray:
        return np.array([ord(c) for c in text], np.int32)


def test_stop_string_across_a_fork_ends_the_segment() -> None:
    """The probe ends inside a call that the tag tokenizer writes in pieces."""
    ids = Letters.ids
    request = GenerateRequest(request_id="x", token_ids=ids(""), sampling=SamplingParams(max_new_tokens=64))

    async def first_chunk() -> object:
        generator = ScriptedGenerator(lambda r: Script(token_ids=list(ids("rch> and on")), finish_reason="length"))
        async for chunk in generator.generate(request):
            return chunk
        return None

    chunk = run_virtual(first_chunk())
    cut = StopSeam(Letters(), ids("I look </sea")).cut(chunk)
    assert (cut.token_ids.size, cut.finish_reason) == (4, "stop")
    untouched = StopSeam(Letters(), ids("")).cut(chunk)
    assert untouched is chunk
    behind_one = StopSeam(Letters(), ids("I look </search>")).cut(chunk)
    assert behind_one is chunk, "what ended before is gone on with"


def test_stop_string_across_any_place_where_a_backend_begins_anew_ends_the_segment() -> None:
    def chunk(text: str, *, begins_anew: bool) -> Completion:
        zeros = np.zeros(len(text), np.float32)
        return Completion(
            request_id="x",
            token_ids=Letters.ids(text),
            logprobs=zeros,
            entropy_low=zeros,
            entropy_high=zeros,
            versions=np.zeros(len(text), np.int32),
            begins_anew=begins_anew,
        )

    for pieces, size in (
        ((" I look </sea", "rch> and on"), 4),
        (("I look", " </se", "a", "rch> and on"), 4),
        (("I look </search", ">"), 1),
    ):
        seam = StopSeam(Letters(), Letters.ids(""))
        *before, last = (chunk(piece, begins_anew=n > 0) for n, piece in enumerate(pieces))
        assert all(seam.cut(one) is one for one in before)
        assert (seam.cut(last).token_ids.size, seam.cut(last).finish_reason) == (size, "stop")
        seam = StopSeam(Letters(), Letters.ids(""))
        for one in (chunk(piece, begins_anew=False) for piece in pieces):
            assert seam.cut(one) is one, "the server sees what lies in one request"


@pytest.mark.parametrize("fork_at", ["probe_end", "tool_result"])
def test_a_request_says_where_branches_begin_inside_of_it(tokenizer: HfTokenizer, fork_at: ForkAt) -> None:
    policy = Arpo(initial=1, probe_tokens=3, fork_at=fork_at)
    bench = Bench(tokenizer, searching(tokenizer, level=lambda turn: float(turn)), config=config(policy, size=2))
    bench.run()
    parent, child = bench.tree.paths
    after = {request.request_id: request.fork_after for request in bench.generator.requests}
    probe = 3 if fork_at == "probe_end" else 0
    assert [after[f"e0-r0/0/{length}.0"] for length in (3, *(mark.length for mark in parent.marks))] == [
        0,
        probe,
        probe,
    ]
    # A branch begins behind the place that was looked at, and is looked at behind its own results.
    assert after[f"e0-r0/1/{child.fork_length}.0"] == 0
    assert after[f"e0-r0/1/{child.marks[-1].length}.0"] == probe


def test_a_probe_that_is_sampled_on_is_shorter_by_what_there_is(tokenizer: HfTokenizer) -> None:
    def failing(request: GenerateRequest) -> Script:
        script = searching(tokenizer, turns=1)(request)
        is_probed = request.fork_after == 3
        return msgspec.structs.replace(script, fails_after=2) if is_probed else script

    generator = FineGenerator(failing)
    settings = config(Arpo(initial=1, probe_tokens=3, tau=9.0), size=1)
    Bench(tokenizer, failing, config=settings, generator=generator).run()
    assert [request.fork_after for request in generator.requests] == [0, 3, 1]


class FineGenerator(ScriptedGenerator):
    """One that streams token by token, whatever it is asked for."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        async for chunk in super().generate(msgspec.structs.replace(request, stream_interval=1)):
            yield chunk


def test_a_stop_string_across_the_end_of_a_probe_ends_the_segment(folder: Path) -> None:
    """A backend that ends a part of a request there looks for stop strings in each part alone."""
    make_bpe_tokenizer(folder, texts=["who is it"] * 3, vocab_size=300)
    pieces = load_tokenizer(folder)
    call = pieces.encode_plain("<search> page </search>")
    k = len(call) - 3

    def script(request: GenerateRequest) -> Script:
        num_results = pieces.decode(request.token_ids.tolist()).count("</result>")
        if num_results == 0:
            return Script(token_ids=call)
        if num_results == 1:
            return Script(token_ids=[*call, *pieces.encode_plain(" and on and on")], finish_reason="length")
        return Script(token_ids=pieces.encode_plain("two"))

    bench = Bench(pieces, script, config=config(Arpo(initial=1, probe_tokens=k, tau=9.0), size=1))
    group = bench.run()
    (path,) = bench.tree.paths
    assert [c.name for c in path.calls] == ["search", "search"]
    assert "and on" not in pieces.decode(group.tree.token_ids(group.trajectories[0].leaf).tolist())


def test_a_tree_goes_on_from_any_prefix_of_its_events(tokenizer: HfTokenizer) -> None:
    """Resuming repeats no tool call whose result is known, and ends in a whole group."""
    settings = config(Arpo(initial=2, probe_tokens=3), size=4)
    whole = Bench(tokenizer, searching(tokenizer, level=lambda turn: float(turn)), config=settings, latency_s=1.0)
    whole.run()
    for cut in range(len(whole.events)):
        again = Bench(tokenizer, searching(tokenizer, level=lambda turn: float(turn)), config=settings)
        for event in whole.events[:cut]:
            again.tree.apply(event)
        known = {(e.path, e.index) for e in whole.events[:cut] if isinstance(e, ToolFinished)}
        if again.tree.is_finished:
            continue
        before = again.tree.num_executed
        group = again.run()
        assert len(group.trajectories) == 4
        assert all(t.status is RolloutStatus.COMPLETED for t in group.trajectories)
        assert all(t.reward.score == 1.0 for t in group.trajectories), "none ended without its reward"
        searches = [c for c in again.tools.calls if c.name == "search"]
        assert len(searches) == again.tree.num_executed - before
        assert known.isdisjoint((e.path, e.index) for e in again.events if isinstance(e, ToolFinished))


@pytest.mark.parametrize("granting", [Paper(), Ranked(window=3, fraction=0.5)], ids=["paper", "ranked"])
def test_logical_order_gives_the_same_forks_whatever_the_timing(
    tokenizer: HfTokenizer, granting: Paper | Ranked
) -> None:
    settings = RolloutConfig(size=8, branching=Arpo(initial=3, probe_tokens=4), granting=granting, stream_interval=4)
    search = tokenizer.encode("<search> page </search>")
    answer = [*tokenizer.encode("<answer> two </answer>"), tokenizer.eos_token_ids[0]]
    words = np.array(tokenizer.encode("one two three note"), np.int32)

    def forks(token_s: float, latency_s: float) -> list[list[tuple[int, int, int]]]:
        cohort = new_cohort(settings, size=3, is_logical=True)
        script = random_script(calls=[search], answer=answer, words=words, num_words=9, token_s=token_s)

        async def main() -> list[list[tuple[int, int, int]]]:
            benches = [
                Bench(tokenizer, script, config=settings, cohort=cohort, prompt_id=f"e0-r{i}", latency_s=latency_s * i)
                for i in range(3)
            ]
            async with asyncio.TaskGroup() as group:
                for bench in benches:
                    group.create_task(bench.grow())
            return [[(e.path, e.child, e.length) for e in b.events if isinstance(e, Forked)] for b in benches]

        return run_virtual(main())

    quiet, slow_tools, slow_model = forks(0.0, 0.0), forks(0.001, 1.0), forks(0.3, 0.01)
    assert quiet == slow_tools == slow_model
    assert sum(map(len, quiet)) > 3


def test_ranked_grants_the_best_of_the_cohort(tokenizer: HfTokenizer) -> None:
    settings = RolloutConfig(
        size=3, branching=Arpo(initial=1, probe_tokens=2), granting=Ranked(window=2, fraction=0.5), stream_interval=2
    )
    cohort = new_cohort(settings, size=2)

    async def main() -> list[Bench]:
        benches = [
            Bench(
                tokenizer,
                searching(tokenizer, turns=1, level=lambda turn, high=high: turn * high, body=9),
                config=settings,
                cohort=cohort,
                prompt_id=f"e0-r{i}",
            )
            for i, high in enumerate([0.5, 2.0])
        ]
        async with asyncio.TaskGroup() as group:
            for bench in benches:
                group.create_task(bench.grow())
        return benches

    weak, strong = run_virtual(main())
    when = {
        name: next((i for i, e in enumerate(bench.events) if isinstance(e, Forked)), None)
        for name, bench in (("weak", weak), ("strong", strong))
    }
    ended = next(i for i, e in enumerate(weak.events) if type(e).__name__ == "PathEnded")
    assert when["strong"] is not None
    assert when["weak"] is None or when["weak"] > ended, "the weaker proposal waits until its tree runs dry"


def test_cancelling_a_rollout_leaves_no_task_and_a_tree_that_can_go_on(tokenizer: HfTokenizer) -> None:
    bench = Bench(tokenizer, searching(tokenizer), config=config(Chain()), latency_s=5.0)

    async def main() -> set[str]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await bench.grow()
        return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert run_virtual(main()) == set()
    assert len(bench.run().trajectories) == 4


def test_nodes_of_one_kind_carry_what_their_kind_promises(tokenizer: HfTokenizer) -> None:
    bench = Bench(
        tokenizer,
        searching(tokenizer, level=lambda turn: float(turn)),
        config=config(Arpo(initial=2, probe_tokens=3), size=5),
    )
    group = bench.run()
    for index, node in enumerate(group.tree.nodes):
        assert node.parent < index
        size = node.token_ids.size if node.kind is NodeKind.SAMPLED else 0
        assert node.logprobs.size == node.versions.size == node.entropies.size == size


def test_the_error_of_a_generator_is_named() -> None:
    async def main() -> None:
        generator = ScriptedGenerator(lambda r: Script(token_ids=[1, 2], fails_after=0))
        request = GenerateRequest(
            request_id="x", token_ids=np.zeros(1, np.int32), sampling=SamplingParams(max_new_tokens=64)
        )
        async for _ in generator.generate(request):
            pass

    with pytest.raises(GeneratorError, match="scripted failure"):
        run_virtual(main())


def test_malformed_calls_cost_no_budget_and_instruct_the_model(tokenizer: HfTokenizer) -> None:
    stop = tokenizer.encode("</search>")
    answer = [*tokenizer.encode("<answer> two </answer>"), tokenizer.eos_token_ids[0]]
    result = tokenizer.encode("</result>")[-1]
    bench = Bench(
        tokenizer,
        lambda r: Script(token_ids=answer if result in r.token_ids else stop),
        config=config(Chain(), size=1),
    )
    group = bench.run()
    assert (group.num_tool_calls_requested, group.num_tool_calls_executed) == (1, 0)
    assert bench.tree.paths[0].results[0].status == "malformed"
    assert isinstance(bench.tree.paths[0].calls[0], ToolCall)

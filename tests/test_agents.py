"""Agents of users: what their calls of the policy come to in a tree, where they branch, and how they fail."""

import asyncio
import re
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from actors.agent_rollout import INTERRUPTED, AgentRollout
from actors.gateway.dialogue import Dialogue
from actors.policy import Agent, Policy, Segment
from engine.branching import AnyBranching, Arpo, Chain
from engine.clock import run_virtual
from engine.cohort import Cohort
from engine.cohorts import Cohorts
from engine.errors import OutOfRoomError
from engine.events import AnyTreeEvent
from engine.inference.scripted import Script, ScriptedGenerator
from engine.renderer import RendererConfig
from engine.rollout_config import BudgetConfig, RolloutConfig, SamplingConfig
from engine.tokenizer import HfTokenizer
from engine.tree import TreeBuilder
from engine.types import GenerateRequest, NodeKind, Prompt, Reward, RolloutStatus, ToolCall, TrajectoryGroup
from tests.gateway_world import Adder, make_tokenizer
from tools.faults import ScriptedTools

PROMPT = "<|im_start|>user\nwhat is 1 plus 2?<|im_end|>\n<|im_start|>assistant\n"
REWARD = msgspec.json.encode(Reward(score=0.25)).decode()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("model"))


class Bench:
    """One tree, an agent, a policy that adds by a tool, and everything that happened."""

    def __init__(
        self,
        tokenizer: HfTokenizer,
        agent: Agent,
        *,
        size: int = 2,
        branching: AnyBranching | None = None,
        sampling: SamplingConfig | None = None,
        calls_per_path: int = 6,
        timeout_s: float = 60.0,
        policy: Callable[[GenerateRequest], Script] | None = None,
        events: list[AnyTreeEvent] | None = None,
    ) -> None:
        self.tools = ScriptedTools({"add": "3", "reward": REWARD})
        self.config = RolloutConfig(
            size=size,
            branching=branching or Chain(),
            sampling=sampling or SamplingConfig(),
            budget=BudgetConfig(calls_per_path=calls_per_path),
        )
        self.generator = ScriptedGenerator(policy or Adder(tokenizer, token_s=0.01))
        ids = np.array(tokenizer.encode(PROMPT), np.int32)
        self.tree = TreeBuilder(
            Prompt(prompt_id="e0-r0", epoch=0, row=0, token_ids=ids, question="what is 1 plus 2?", ground_truth="3")
        )
        for event in events or ():
            self.tree.apply(event)
        self.events: list[AnyTreeEvent] = []
        self.cohorts = Cohorts(self.config, size=1)
        self.rollout = AgentRollout(
            self.tree,
            agent=agent,
            config=self.config,
            seed=0,
            cohort=self.cohort,
            generator=self.generator,
            tools=self.tools,
            dialogue=Dialogue(tokenizer, RendererConfig(format="hermes"), self.tools.specs),
            emit=self.events.append,
            timeout_s=timeout_s,
        )

    @property
    def cohort(self) -> Cohort:
        return self.cohorts[0]

    def run(self) -> TrajectoryGroup:
        return run_virtual(self.rollout.run())


async def adder(policy: Policy, prompt: Prompt) -> float:
    """Runs its tool itself; what it is worth is whether the sum is in the answer."""
    turn = await policy.sample()
    while turn.calls:
        policy.answer(*[str(call.arguments["a"] + call.arguments["b"]) for call in turn.calls])
        turn = await policy.sample()
    return float(turn.text == f"the sum is {prompt.ground_truth}.")


def test_calls_of_the_policy_are_segments_and_results_are_observed(tokenizer: HfTokenizer) -> None:
    bench = Bench(tokenizer, adder)
    group = bench.run()
    assert [(t.status, t.reward.score, t.num_tool_calls) for t in group.trajectories] == [
        (RolloutStatus.COMPLETED, 1.0, 1)
    ] * 2
    for trajectory in group.trajectories:
        nodes = [group.tree.nodes[index] for index in group.tree.path_to(trajectory.leaf)]
        assert [node.kind.value for node in nodes] == ["prompt", "sampled", "observed", "sampled"]
        for node in nodes:
            num = node.token_ids.size if node.kind is NodeKind.SAMPLED else 0
            assert node.logprobs.size == node.versions.size == node.entropies.size == num
    # Token in, token out: each path is what its last request saw and what that sampled.
    seen = [request.token_ids for request in bench.generator.requests if b"3" in _text(tokenizer, request)]
    tokens = group.tree.token_ids(group.trajectories[0].leaf)
    assert any(np.array_equal(tokens[: ids.size], ids) for ids in seen)
    assert bench.tools.calls == [], "neither the session's tool nor its reward had a part in it"


def _text(tokenizer: HfTokenizer, request: GenerateRequest) -> bytes:
    response = tokenizer.decode(request.token_ids.tolist()).partition("<tool_response>")[2]
    return response.encode()


def test_a_segment_says_what_was_sampled(tokenizer: HfTokenizer) -> None:
    segments = []

    async def agent(policy: Policy, prompt: Prompt) -> str:
        segments.append(await policy.sample())
        return "an answer"

    bench = Bench(tokenizer, agent, size=1)
    (trajectory,) = bench.run().trajectories
    (segment,) = segments
    assert segment.calls == (ToolCall(name="add", arguments={"a": 1, "b": 2}),)
    assert segment.text.startswith("let me see.")
    assert not segment.text.endswith("<|im_end|>")
    assert not segment.is_cut
    assert segment.token_ids.size == segment.logprobs.size == segment.versions.size == segment.entropies.size > 0
    # A text is what the reward reads.
    assert [call.arguments["text"] for call in bench.tools.calls] == ["an answer"]
    assert trajectory.reward.score == 0.25


def test_without_a_verdict_the_reward_reads_the_whole_path(tokenizer: HfTokenizer) -> None:
    async def agent(policy: Policy, prompt: Prompt) -> None:
        turn = await policy.sample()
        policy.answer(*await policy.run(turn.calls))
        await policy.sample()

    bench = Bench(tokenizer, agent, size=1)
    group = bench.run()
    assert group.trajectories[0].reward.score == 0.25
    asked = bench.tools.calls[-1].arguments
    assert "let me see." in asked["text"]
    assert "the sum is 3." in asked["text"]
    assert (asked["ground_truth"], asked["tools_run"]) == ("3", ["add"])
    assert group.num_tool_calls_executed == 1


def test_what_an_agent_leaves_sampling_ends_with_it(tokenizer: HfTokenizer) -> None:
    async def agent(policy: Policy, prompt: Prompt) -> float:
        turn = await policy.sample(max_tokens=3)
        if policy.number:
            await asyncio.sleep(5.0)
            return 0.0
        left.append(asyncio.create_task(policy.sample()))
        await asyncio.sleep(0.015)
        return float(turn.is_cut)

    left: list[asyncio.Task[Segment]] = []
    bench = Bench(tokenizer, agent)
    assert [t.reward.score for t in bench.run().trajectories] == [1.0, 0.0]
    of_first = [type(event).__name__ for event in bench.events if getattr(event, "path", None) == 0]
    assert of_first[-2:] == ["Rewarded", "PathEnded"]
    assert left[0].cancelled()


def test_a_path_that_was_cut_is_gone_on_with_when_its_generator_fails_once(tokenizer: HfTokenizer) -> None:
    asked: list[GenerateRequest] = []
    says = Adder(tokenizer, token_s=0.01)

    def policy(request: GenerateRequest) -> Script:
        asked.append(request)
        return msgspec.structs.replace(says(request), fails_after=0 if len(asked) == 2 else None)

    async def agent(handle: Policy, prompt: Prompt) -> float:
        await handle.sample(max_tokens=3)
        turn = await handle.sample()
        return float(bool(turn.calls))

    group = Bench(tokenizer, agent, size=1, policy=policy).run()
    assert (group.trajectories[0].reward.score, len(asked)) == (1.0, 3)


def test_nothing_is_sampled_under_a_bound_of_nothing(tokenizer: HfTokenizer) -> None:
    async def agent(policy: Policy, prompt: Prompt) -> float:
        with pytest.raises(ValueError, match="max_tokens=0"):
            await policy.sample(max_tokens=0)
        await policy.sample()
        return 1.0

    assert Bench(tokenizer, agent, size=1).run().trajectories[0].reward.score == 1.0


def test_the_tools_of_the_session_are_held_by_the_budgets(tokenizer: HfTokenizer) -> None:
    outcomes: list[str] = []

    async def agent(policy: Policy, prompt: Prompt) -> float:
        turn = await policy.sample()
        outcomes.extend(result.status for result in await policy.run([*turn.calls, *turn.calls]))
        return 1.0

    Bench(tokenizer, agent, size=1, calls_per_path=1).run()
    assert outcomes == ["ok", "refused"]


def test_what_the_user_says_and_what_is_written_goes_on_with_the_path(tokenizer: HfTokenizer) -> None:
    async def agent(policy: Policy, prompt: Prompt) -> float:
        await policy.sample(stop=["me see"], max_tokens=len("let me see"))
        policy.write("?\n")
        await policy.sample()
        policy.say("hello")
        turn = await policy.sample()
        return float(turn.text == "you said: hello")

    bench = Bench(tokenizer, agent, size=1)
    group = bench.run()
    assert group.trajectories[0].reward.score == 1.0
    assert [request.sampling.stop[-1:] == ("me see",) for request in bench.generator.requests] == [True, False, False]
    text = tokenizer.decode(bench.generator.requests[-1].token_ids.tolist())
    assert "let me see?\nlet me see.\n<tool_call>" in text
    assert text.endswith("<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")


def test_a_fork_goes_on_from_where_it_was_made_and_is_scored_by_itself(tokenizer: HfTokenizer) -> None:
    granted: list[bool] = []

    async def wrong(policy: Policy, prompt: Prompt) -> float:
        policy.answer("4")
        await policy.sample()
        return 0.0

    async def agent(policy: Policy, prompt: Prompt) -> float:
        turn = await policy.sample()
        granted.extend(policy.fork(wrong) for _ in range(3))
        policy.answer(*[str(call.arguments["a"] + call.arguments["b"]) for call in turn.calls])
        return float((await policy.sample()).text == "the sum is 3.")

    bench = Bench(tokenizer, agent, size=4, branching=Arpo(initial=2))
    group = bench.run()
    forks = [t for t in group.trajectories if t.forked_from >= 0]
    assert len(group.trajectories) == 4
    assert [t.reward.score for t in forks] == [0.0, 0.0]
    assert sorted(granted) == [False] * 4 + [True] * 2
    for fork in forks:
        parent = group.trajectories[fork.forked_from]
        ours, theirs = group.tree.token_ids(fork.leaf), group.tree.token_ids(parent.leaf)
        assert np.array_equal(ours[: fork.fork_length], theirs[: fork.fork_length])
        assert "the sum is 4." in tokenizer.decode(ours.tolist())
    replayed = TreeBuilder(bench.tree.prompt)
    for event in bench.events:
        replayed.apply(event)
    assert [node.token_ids.tolist() for node in replayed.group().tree.nodes] == [
        node.token_ids.tolist() for node in group.tree.nodes
    ]


def test_places_that_forks_leave_are_filled(tokenizer: HfTokenizer) -> None:
    group = Bench(tokenizer, adder, size=5, branching=Arpo(initial=2)).run()
    assert [t.forked_from for t in group.trajectories] == [-1] * 5


async def _raises(policy: Policy, prompt: Prompt) -> float:
    await policy.sample()
    raise KeyError("lost")


async def _hangs(policy: Policy, prompt: Prompt) -> float:
    await policy.sample()
    await asyncio.Event().wait()
    return 1.0


async def _cancels_itself(policy: Policy, prompt: Prompt) -> float:
    await policy.sample()
    raise asyncio.CancelledError


async def _says_nothing(policy: Policy, prompt: Prompt) -> float:
    return 1.0


async def _returns_a_list(policy: Policy, prompt: Prompt) -> float:
    await policy.sample()
    return []  # type: ignore[return-value]


async def _returns_no_number(policy: Policy, prompt: Prompt) -> float:
    await policy.sample()
    return float("nan")


async def _goes_on_behind_an_end(policy: Policy, prompt: Prompt) -> float:
    await policy.sample()
    await policy.sample()
    return 1.0


async def _samples_twice_at_once(policy: Policy, prompt: Prompt) -> float:
    await asyncio.gather(policy.sample(), policy.sample())
    return 1.0


async def _answers_too_much(policy: Policy, prompt: Prompt) -> float:
    await policy.sample()
    policy.answer("1", "2")
    return 1.0


@pytest.mark.parametrize(
    ("agent", "detail"),
    [
        (_raises, "agent: KeyError: 'lost'"),
        (_hangs, "agent: not at its end within 60 s"),
        (_cancels_itself, "agent: it cancelled itself"),
        (_says_nothing, "agent: it returned without having sampled anything"),
        (_returns_a_list, "agent: it returned a list"),
        (_returns_no_number, "agent: it returned a score of nan"),
        (_goes_on_behind_an_end, "agent: RuntimeError: the policy has ended its turn"),
        (_samples_twice_at_once, "agent: RuntimeError: the policy is sampling on this path"),
        (_answers_too_much, "agent: ValueError: 2 results for 1 calls"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_failure_of_an_agent_fails_its_path_and_no_other(tokenizer: HfTokenizer, agent: Agent, detail: str) -> None:
    async def either(policy: Policy, prompt: Prompt) -> object:
        return await (agent if policy.number == 1 else adder)(policy, prompt)

    bench = Bench(tokenizer, either, size=3)  # type: ignore[arg-type]
    good, bad, other = bench.run().trajectories
    assert (good.status, other.status) == (RolloutStatus.COMPLETED, RolloutStatus.COMPLETED)
    assert bad.status is RolloutStatus.FAILED
    assert bad.reward.reason.startswith(detail)


def test_a_path_out_of_tokens_or_turns_is_truncated_and_scored(tokenizer: HfTokenizer) -> None:
    async def chatters(policy: Policy, prompt: Prompt) -> float:
        while True:
            await policy.sample()
            policy.say("hello")

    async def notices(policy: Policy, prompt: Prompt) -> float:
        try:
            return await chatters(policy, prompt)
        except OutOfRoomError:
            return 0.5

    for sampling in (SamplingConfig(max_turns=2), SamplingConfig(max_response_tokens=150)):
        (trajectory,) = Bench(tokenizer, chatters, size=1, sampling=sampling).run().trajectories
        assert (trajectory.status, trajectory.reward.score) == (RolloutStatus.TRUNCATED, 0.25)
        (trajectory,) = Bench(tokenizer, notices, size=1, sampling=sampling).run().trajectories
        assert (trajectory.status, trajectory.reward.score) == (RolloutStatus.TRUNCATED, 0.5)


def test_a_bound_of_one_call_cuts_and_can_be_gone_on_with(tokenizer: HfTokenizer) -> None:
    async def agent(policy: Policy, prompt: Prompt) -> float:
        first = await policy.sample(max_tokens=4)
        assert (first.is_cut, first.token_ids.size, first.calls) == (True, 4, ())
        return 1.0

    (trajectory,) = Bench(tokenizer, agent, size=1).run().trajectories
    assert (trajectory.status, trajectory.reward.score) == (RolloutStatus.COMPLETED, 1.0)


def test_a_policy_that_fails_fails_the_path_whatever_the_agent_makes_of_it(tokenizer: HfTokenizer) -> None:
    def fails(request: GenerateRequest) -> Script:
        return Script(token_ids=tokenizer.encode("let me see"), fails_after=1)

    async def swallows(policy: Policy, prompt: Prompt) -> float:
        try:
            await policy.sample()
        except Exception:
            return 1.0
        return 1.0

    (trajectory,) = Bench(tokenizer, swallows, size=1, policy=fails).run().trajectories
    assert trajectory.status is RolloutStatus.FAILED
    assert re.search("scripted failure", trajectory.reward.reason)


def test_an_interrupted_path_has_failed_and_another_takes_its_place(tokenizer: HfTokenizer) -> None:
    bench = Bench(tokenizer, _hangs, size=2)

    async def interrupted() -> None:
        task = asyncio.create_task(bench.rollout.run())
        await asyncio.sleep(30.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(interrupted())
    later = Bench(tokenizer, adder, size=2, events=bench.events)
    group = later.run()
    assert [t.status.value for t in group.trajectories] == ["failed", "failed", "completed", "completed"]
    assert group.trajectories[0].reward.reason == INTERRUPTED


def test_cancelling_ends_every_agent(tokenizer: HfTokenizer) -> None:
    ended: list[int] = []

    async def agent(policy: Policy, prompt: Prompt) -> float:
        try:
            return await _hangs(policy, prompt)
        finally:
            ended.append(policy.number)

    async def main() -> int:
        task = asyncio.create_task(Bench(tokenizer, agent, size=4).rollout.run())
        await asyncio.sleep(10.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return len(asyncio.all_tasks())

    assert run_virtual(main()) == 1
    assert sorted(ended) == [0, 1, 2, 3]

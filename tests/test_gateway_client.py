"""The official client, unmodified, against the gateway; and an agent of the generated task, whose answers are right."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import openai
import pytest
from openai import AsyncOpenAI

from engine.chat_template import as_function
from engine.inference.scripted import Script
from engine.tokenizer import HfTokenizer
from engine.traces import Trace, read_traces
from engine.types import GenerateRequest, RolloutStatus, ToolCall
from examples import openai_agent
from tests.gateway_world import KEY, REWARD_KEY, make_words, world
from tools.config import RewardConfig, SearchConfig, ToolsConfig, build_executor
from tools.python import PythonConfig
from tools.toolworld import TOP_K, ToolworldConfig, generate

pytestmark = pytest.mark.timeout(120)


def client_of(url: str, *, key: str = KEY) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30)


def test_the_official_client_streams_and_calls_tools(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, client_of(here.url) as client:
            question = "what is 20 plus 3?"
            answer = await openai_agent.ask(
                client, question, tools=[openai_agent.ADD], run={"add": openai_agent.add}, model="gpt-4o"
            )
            assert answer.text == "the sum is 23."
            path = f"/v1/conversations/{answer.conversation}/reward"
            assert (await here.post(path, {"reward": 1}, key=REWARD_KEY))[0] == 200
            (group,) = here.groups
            assert group.tree.token_ids(group.trajectories[0].leaf).tolist() == here.log.sequences[-1].tolist()

    asyncio.run(main())


def test_the_official_client_reads_replies_logprobs_models_and_errors(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here, client_of(here.url) as client:
            messages = [{"role": "user", "content": "hello"}]
            reply = await client.chat.completions.create(model="m", messages=messages, logprobs=True)
            choice = reply.choices[0]
            assert (choice.message.content, choice.finish_reason) == ("you said: hello", "stop")
            assert reply.usage.completion_tokens == len(choice.logprobs.content)
            # What the client makes of a message can be sent back as it is.
            history = [*messages, choice.message, {"role": "user", "content": "again"}]
            again = await client.chat.completions.create(model="m", messages=history)
            assert again.model_extra["conversation_id"] == reply.model_extra["conversation_id"]
            text = await client.completions.create(model="m", prompt="hello")
            assert text.choices[0].text.startswith("you said")
            assert [model.id async for model in client.models.list()] == ["policy"]
            with pytest.raises(openai.BadRequestError, match="n must be 1"):
                await client.chat.completions.create(model="m", messages=messages, n=2)
        async with world(tmp_path / "2") as here, client_of(here.url, key="wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()

    asyncio.run(main())


class Expert:
    """Says what the traces of an expert say, as far as the results in its context go."""

    def __init__(self, tokenizer: HfTokenizer, traces: Sequence[Trace]) -> None:
        self._tokenizer = tokenizer
        self._segments = {
            trace.prompt[-1]["content"]: [s.text for s in trace.segments if s.is_sampled] for trace in traces
        }

    def __call__(self, request: GenerateRequest) -> Script:
        context = self._tokenizer.decode(request.token_ids.tolist())
        question = context.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        segments = self._segments[question]
        turn = context.count("<result>")
        is_last = turn == len(segments) - 1
        return Script(token_ids=self._tokenizer.encode(segments[turn] + ("<|im_end|>" if is_last else "")))


def test_an_agent_of_the_generated_task_searches_computes_and_is_rewarded(tmp_path: Path) -> None:
    config = ToolworldConfig(num_sft=20, num_train=0, num_valid=0, num_test=0, num_drills=0, plus=1.0, sloppy=0.0)
    files = generate(config, tmp_path / "toolworld")
    words = msgspec.json.decode(Path(files.words).read_bytes(), type=list[str])
    tokenizer = make_words(tmp_path / "words", words=words)
    traces = [trace for trace in read_traces(files.sft) if trace.is_correct][:5]
    search = SearchConfig(corpus=files.corpus, top_k=TOP_K)
    tools = build_executor(ToolsConfig(search=search, python=PythonConfig(), reward=RewardConfig(kind="exact")))

    async def main() -> None:
        async with (
            tools,
            world(tmp_path, policy=lambda _: Expert(tokenizer, traces), tokenizer=tokenizer, form="arpo") as here,
            client_of(here.url) as client,
        ):

            def runner(name: str) -> openai_agent.Run:
                async def run(**arguments: str) -> str:
                    return (await tools.call(ToolCall(name=name, arguments=arguments))).text

                return run

            for trace in traces:
                answer = await openai_agent.ask(
                    client,
                    trace.prompt[-1]["content"],
                    tools=[as_function(spec) for spec in tools.specs],
                    run={spec.name: runner(spec.name) for spec in tools.specs},
                    system="".join(m["content"] for m in trace.prompt if m["role"] == "system"),
                )
                assert answer.text.strip() == trace.segments[-1].text.strip()
                path = f"/v1/conversations/{answer.conversation}/reward"
                assert (await here.post(path, {"reward": 1}, key=REWARD_KEY))[0] == 200
            assert len(here.groups) == len(traces)
            for group, trace in zip(here.groups, traces, strict=True):
                (trajectory,) = group.trajectories
                assert trajectory.status is RolloutStatus.COMPLETED
                assert trajectory.num_tool_calls == sum(s.is_sampled for s in trace.segments) - 1
                # The whole trace, results of real tools included, is what the cold start would have trained on.
                response = group.tree.token_ids(trajectory.leaf)[group.prompt.token_ids.size :]
                shown = tokenizer.decode(response.tolist()).replace("<|im_end|>", " <|im_end|>")
                told = "".join(segment.text for segment in trace.segments) + "<|im_end|>"
                assert shown.split() == told.replace("<|im_end|>", " <|im_end|>").split()

    asyncio.run(main())

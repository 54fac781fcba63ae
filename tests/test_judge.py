"""The judge: what it is asked, how its replies are read, and that a failure is a missing verdict, never a wrong one."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from aiohttp import web

from engine.clock import run_virtual
from engine.errors import ConfigError, ToolError
from tools.chat_endpoint import ChatEndpoint, EndpointBusyError
from tools.judge import AGAIN, Judge, JudgeConfig, Verdict, make_endpoint, read_verdict

CONFIG = JudgeConfig(url="http://judge/v1", model="m")


class ScriptedEndpoint:
    """Answers with each step of a script in turn, the last one for ever; an exception is raised."""

    def __init__(self, *script: str | Exception, duration_s: float = 0.0) -> None:
        self._script = script
        self._duration_s = duration_s
        self.asked: list[list[dict[str, str]]] = []
        self.num_running = self.most_running = 0

    async def complete(self, messages: Sequence[dict[str, str]]) -> str:
        self.asked.append(list(messages))
        step = self._script[min(len(self.asked), len(self._script)) - 1]
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await asyncio.sleep(self._duration_s)
        finally:
            self.num_running -= 1
        if isinstance(step, Exception):
            raise step
        return step


def judged(endpoint: ScriptedEndpoint, config: JudgeConfig = CONFIG) -> tuple[Verdict, float]:
    """The verdict on one answer, and the (virtual) seconds it took."""

    async def main() -> tuple[Verdict, float]:
        verdict = await Judge(config, endpoint).judge("Where?", truths=["Rome", "Roma"], answer="In Rome")
        return verdict, asyncio.get_running_loop().time()

    return run_virtual(main())


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Correct", True),
        ("Incorrect", False),
        ('"Correct".', True),
        ("**incorrect**", False),
        ("Correct. Both name Rome.", True),
        ("Incorrect, since 5 is not 6.", False),
        ("<think>It is Correct at first sight.</think>\n\nIncorrect", False),
        ("The years agree.\nFinal verdict: Correct", True),
        ("\\boxed{\\text{Correct}}", True),
        ("Judgement: Incorrect", False),
        ("not correct", None),
        ("The prediction is correct", None),
        ("Correct answers need a year; this one has none.", None),
        ("Correct.\nOn reflection:\nIncorrect", None),
        ("Correct or Incorrect", None),
        ("<think>Correct", None),
        ("", None),
        ("...", None),
    ],
)
def test_a_verdict_is_read_only_where_it_is_clear(reply: str, said: bool | None) -> None:
    assert read_verdict(reply) is said


def test_the_judge_sees_question_golden_and_predicted_answer() -> None:
    endpoint = ScriptedEndpoint("Correct")
    assert judged(endpoint) == (Verdict(is_correct=True), 0.0)
    ((message,),) = endpoint.asked
    assert message["role"] == "user"
    assert message["content"].endswith("\n\nQuestion: Where?\nGolden Answer: Rome or Roma\nPredicted Answer: In Rome")


def test_a_busy_server_is_asked_again_after_longer_and_longer_waits() -> None:
    busy = EndpointBusyError("busy")
    assert judged(ScriptedEndpoint(busy, busy, busy, "Incorrect")) == (Verdict(is_correct=False), 7.0)
    patient = EndpointBusyError("busy", retry_after_s=20.0)
    assert judged(ScriptedEndpoint(patient, "Correct")) == (Verdict(is_correct=True), 20.0)


def test_a_server_that_stays_busy_leaves_the_verdict_missing() -> None:
    endpoint = ScriptedEndpoint(EndpointBusyError("HTTP 503"))
    assert judged(endpoint)[0] == Verdict(is_correct=None, problem="HTTP 503")
    assert len(endpoint.asked) == 1 + CONFIG.max_retries


def test_a_refused_question_leaves_its_verdict_missing_at_once() -> None:
    endpoint = ScriptedEndpoint(ToolError("too long"))
    assert judged(endpoint) == (Verdict(is_correct=None, problem="too long"), 0.0)
    assert len(endpoint.asked) == 1


def test_a_silent_server_leaves_the_verdict_missing_at_the_deadline() -> None:
    verdict, took_s = judged(ScriptedEndpoint("Correct", duration_s=1e6))
    assert (verdict, took_s) == (Verdict(is_correct=None, problem="no verdict within 300 s"), 300.0)


def test_a_reply_that_cannot_be_read_is_asked_for_once_more() -> None:
    endpoint = ScriptedEndpoint("It depends.", "Incorrect")
    assert judged(endpoint)[0] == Verdict(is_correct=False)
    assert [message["content"] for message in endpoint.asked[1][1:]] == ["It depends.", AGAIN]
    verdict, _ = judged(ScriptedEndpoint("It depends."))
    assert verdict == Verdict(is_correct=None, problem="no verdict in 'It depends.'")


def test_a_wrong_address_or_key_ends_the_judging() -> None:
    with pytest.raises(ConfigError, match="HTTP 401"):
        judged(ScriptedEndpoint(ConfigError("HTTP 401")))


def test_no_more_questions_are_in_flight_than_allowed() -> None:
    endpoint = ScriptedEndpoint("Correct", duration_s=1.0)
    judge = Judge(JudgeConfig(url="http://judge/v1", model="m", max_concurrency=3), endpoint)

    async def main() -> float:
        await asyncio.gather(*(judge.judge("?", truths=["a"], answer="b") for _ in range(10)))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 4.0
    assert endpoint.most_running == 3


def served(handler: Callable[[web.Request], Coroutine[Any, Any, web.Response]], *, timeout_s: float = 5.0) -> str:
    """What an endpoint makes of a real server on loopback that answers by `handler`."""

    async def main() -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)  # a handler that never answers is not waited for
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            endpoint = ChatEndpoint(
                f"http://127.0.0.1:{port}/v1/", model="m", key_variable="JUDGE_KEY", timeout_s=timeout_s, max_tokens=9
            )
            async with endpoint:
                return await endpoint.complete([{"role": "user", "content": "hi"}])
        finally:
            await runner.cleanup()

    return asyncio.run(main())


def answering(status: int, body: str, **headers: str) -> Callable[[web.Request], Coroutine[Any, Any, web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handler


def test_a_request_is_what_openai_compatible_servers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(await request.json(), key=request.headers.get("Authorization"))
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": "Correct"}}], "usage": {}})

    assert served(handler) == "Correct"
    assert seen == {
        "model": "m",
        "temperature": 0.0,
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "key": "Bearer secret",
    }
    assert "secret" not in repr(ChatEndpoint("u", model="m", key_variable="JUDGE_KEY", timeout_s=1, max_tokens=1))


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (503, "overloaded", EndpointBusyError, "HTTP 503: overloaded"),
        (429, "slow down", EndpointBusyError, "HTTP 429: slow down"),
        (400, "too long", ToolError, "HTTP 400: too long"),
        (401, "who?", ConfigError, r"HTTP 401: who\? \(there is no JUDGE_KEY in the environment\) - at \$.eval.judge"),
        (404, "no model", ConfigError, "HTTP 404: no model"),
        (200, "no json", ToolError, "no chat completion: .*: no json"),
        (200, '{"choices": []}', ToolError, "no chat completion"),
    ],
)
def test_a_refusal_is_told_by_who_can_help(
    status: int, body: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(kind, match=message) as caught:
        served(answering(status, body))
    assert type(caught.value) is kind


def test_a_server_says_when_to_come_back() -> None:
    with pytest.raises(EndpointBusyError) as caught:
        served(answering(429, "", Retry_After="7"))
    assert caught.value.retry_after_s == 7.0


def test_no_connection_and_no_answer_are_worth_another_try() -> None:
    async def never(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(EndpointBusyError, match=r"no answer within 0\.05 s"):
        served(never, timeout_s=0.05)

    async def main() -> str:
        async with make_endpoint(JudgeConfig(url="http://127.0.0.1:1/v1", model="m")) as endpoint:
            return await endpoint.complete([])

    with pytest.raises(EndpointBusyError, match="Connect"):
        asyncio.run(main())


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"url 'judge:8000': expected http://"):
        JudgeConfig(url="judge:8000", model="m")

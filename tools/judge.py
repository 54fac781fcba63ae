"""Judge: a large model says whether an answer means what the right one means (ARPO's evaluation of open questions).

A verdict is `Correct`, `Incorrect`, or missing. It is missing, and never guessed, where the server failed to the end of
the retries, the deadline passed, or two replies in a row could not be read.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Protocol

import msgspec

from engine.config import NonNegative, Positive, PositiveFloat, Section
from engine.errors import ConfigError, ToolError
from tools.chat_endpoint import ChatEndpoint, EndpointBusyError

INSTRUCTION = (
    "Given a Question and its Golden Answer, verify whether the Predicted Answer is correct. The prediction is correct "
    "if it fully aligns with the meaning and key information of the Golden Answer. Respond with "
    '"Correct" if the prediction is correct and "Incorrect" otherwise.'
)
"""ARPO's judge prompt."""
AGAIN = "Respond with one word: Correct or Incorrect."
FIRST_WAIT_S = 1.0
"""Before the second request; doubled before each further one."""
_THOUGHT = re.compile(r".*</think>", re.DOTALL)
_VERDICT = r"(?P<verdict>correct|incorrect)"
_LABEL = r"(?:(?:final\s+)?(?:verdict|judge?ment|answer|evaluation)\s*[:=-]\s*)?"
_LINE = re.compile(rf"{_LABEL}{_VERDICT}", re.IGNORECASE)
_START = re.compile(rf"{_LABEL}{_VERDICT}\s*(?:[.:,;!(]|[-\u2013\u2014])", re.IGNORECASE)
_MARKUP = re.compile(r"[*_`\"'#>]|\\boxed\{|\}|\\text\{")


class JudgeConfig(Section, frozen=True):
    """Which model judges. Its key is read from the environment, never from a file."""

    url: str
    """Of an OpenAI-compatible server, up to `/v1`: `http://judge:30000/v1`."""
    model: str
    """The paper's is Qwen2.5-72B-Instruct."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable with the key; unset, requests carry none."""
    max_concurrency: Positive = 32
    """Verdicts in flight."""
    timeout_s: PositiveFloat = 60.0
    """Of one request."""
    deadline_s: PositiveFloat = 300.0
    """Of one verdict, with all its retries."""
    max_retries: NonNegative = 4
    """Requests of a verdict beyond the first, where the server is busy."""
    max_tokens: Positive = 1024
    """Of a reply; a model that thinks first needs them."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url {self.url!r}: expected http://... or https://...")


class Endpoint(Protocol):
    """Messages in, a text out; `chat_endpoint.ChatEndpoint` is the real one."""

    async def complete(self, messages: Sequence[dict[str, str]]) -> str: ...


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge said of one answer."""

    is_correct: bool | None
    """None where there is no verdict."""
    problem: str = ""
    """Why there is none."""


class Judge:
    """Asks for verdicts, at most `max_concurrency` at a time."""

    def __init__(self, config: JudgeConfig, endpoint: Endpoint) -> None:
        self._config = config
        self._endpoint = endpoint
        self._slots = asyncio.Semaphore(config.max_concurrency)

    async def judge(self, question: str, *, truths: Sequence[str], answer: str) -> Verdict:
        """The verdict on one answer; a failure of the server is a missing one.

        Raises `ConfigError` where address, key or model are wrong, since that holds for every question.
        """
        golden = " or ".join(truths)
        asked = f"{INSTRUCTION}\n\nQuestion: {question}\nGolden Answer: {golden}\nPredicted Answer: {answer}"
        async with self._slots:
            try:
                async with asyncio.timeout(self._config.deadline_s):
                    return await self._ask([{"role": "user", "content": asked}])
            except TimeoutError:
                return Verdict(is_correct=None, problem=f"no verdict within {self._config.deadline_s:g} s")
            except ConfigError:
                raise
            except ToolError as error:
                return Verdict(is_correct=None, problem=str(error))

    async def _ask(self, messages: list[dict[str, str]]) -> Verdict:
        reply = await self._complete(messages)
        said = read_verdict(reply)
        if said is None:
            again = [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": AGAIN}]
            reply = await self._complete(again)
            said = read_verdict(reply)
        return Verdict(is_correct=said, problem="" if said is not None else f"no verdict in {reply[-100:]!r}")

    async def _complete(self, messages: list[dict[str, str]]) -> str:
        wait_s = FIRST_WAIT_S
        for _ in range(self._config.max_retries):
            try:
                return await self._endpoint.complete(messages)
            except EndpointBusyError as error:
                await asyncio.sleep(max(wait_s, error.retry_after_s))
                wait_s *= 2
        return await self._endpoint.complete(messages)


def read_verdict(reply: str) -> bool | None:
    """What a reply says, thoughts left out: its first or last line is the verdict, or it begins with one and a stop.

    Where two places disagree, or neither is one, there is none: "not correct" is not read as "correct".

    >>> read_verdict("**Correct**"), read_verdict("Both name Rome.\\nVerdict: incorrect."), read_verdict("not correct")
    (True, False, None)
    """
    plain = _MARKUP.sub("", _THOUGHT.sub("", reply))
    lines = [line for text in plain.splitlines() if (line := text.strip().rstrip(".!").strip())]
    if not lines:
        return None
    found = [_LINE.fullmatch(lines[0]), _START.match(plain.strip()), _LINE.fullmatch(lines[-1])]
    said = {match["verdict"].lower() for match in found if match is not None}
    return said == {"correct"} if len(said) == 1 else None


def make_endpoint(config: JudgeConfig) -> ChatEndpoint:
    """The server that a configuration names; nothing is connected by then."""
    return ChatEndpoint(
        config.url,
        model=config.model,
        key_variable=config.key_variable,
        timeout_s=config.timeout_s,
        max_tokens=config.max_tokens,
    )

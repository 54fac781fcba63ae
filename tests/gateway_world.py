"""A gateway in front of a scripted policy, over real sockets of loopback; what a client, and what the policy, sees."""

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
import numpy as np

from actors.config import Config, HfModel
from actors.gateway.config import ServeConfig
from actors.gateway.keys import Keys, TenantKeys
from actors.gateway.records import Records
from actors.gateway.server import Gateway
from actors.serve import gateway
from engine.dataset import DataConfig
from engine.inference.scripted import Script, ScriptedGenerator
from engine.journal import read_unnumbered
from engine.renderer import RendererConfig
from engine.rollout_config import RolloutConfig, SamplingConfig
from engine.tokenizer import HfTokenizer, load_tokenizer
from engine.tokenizer_tiny import make_bpe_tokenizer, make_word_tokenizer
from engine.tree import TreeBuilder
from engine.types import Completion, GenerateRequest, Int32, TrajectoryGroup

KEY, OTHER_KEY, REWARD_KEY = "key-of-alice", "key-of-bob-0", "reward-key-of-alice"
KEYS = Keys({"alice": TenantKeys(key=KEY, reward_key=REWARD_KEY), "bob": TenantKeys(key=OTHER_KEY)})
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
TEXTS = ["what is 1 plus 2? the sum is 3.", "hello, how are you today? fine, thank you.", '{"name": "add"}']


def make_tokenizer(folder: Path) -> HfTokenizer:
    make_bpe_tokenizer(folder, texts=TEXTS * 20, vocab_size=400)
    return load_tokenizer_of(folder)


def make_words(folder: Path, *, words: Sequence[str]) -> HfTokenizer:
    """A tokenizer of a generated task."""
    make_word_tokenizer(folder, words=words)
    return load_tokenizer_of(folder)


def load_tokenizer_of(folder: Path) -> HfTokenizer:
    (folder / "config.json").write_text("{}")
    return load_tokenizer(folder)


class Adder:
    """A policy that adds by a tool, and otherwise echoes; it spells its words letter by letter, as no encoder would."""

    def __init__(self, tokenizer: HfTokenizer, *, token_s: float = 0.0) -> None:
        self._tokenizer = tokenizer
        self._token_s = token_s

    def __call__(self, request: GenerateRequest) -> Script:
        text = self.answer(self._tokenizer.decode(request.token_ids.tolist()))
        return Script(token_ids=self.spelled(text), token_s=self._token_s)

    def answer(self, context: str) -> str:
        last = context.rpartition("<|im_start|>user\n")[2]
        if found := re.findall(r"<tool_response>\n(.*?)\n</tool_response>", last, re.DOTALL):
            return f"the sum is {found[-1]}.<|im_end|>"
        if found := re.search(r"(\d+) plus (\d+)", last):
            arguments = f'{{"a": {found[1]}, "b": {found[2]}}}'
            return f'let me see.\n<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call><|im_end|>'
        return f"you said: {last.partition('<|im_end|>')[0]}<|im_end|>"

    def spelled(self, text: str) -> list[int]:
        tokens: list[int] = []
        for piece in re.split(r"(<\|im_end\|>)", text):
            letters = [piece] if piece.startswith("<|") else piece
            for letter in letters:
                tokens += self._tokenizer.encode(letter)
        return tokens


class Log:
    """A generator that remembers, on its own side, what it was asked and what it sampled."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.sequences: list[Int32] = []
        """Of each request that ended: all tokens it saw and sampled."""
        self.requests: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        self.requests.append(request)
        sampled: list[Int32] = []
        async for chunk in self._inner.generate(request):
            sampled.append(chunk.token_ids)
            if chunk.finish_reason:
                self.sequences.append(np.concatenate([request.token_ids, *sampled]))
            yield chunk


class World:
    """What a test holds: the gateway's address, a client, and both sides' memories."""

    def __init__(self, url: str, http: aiohttp.ClientSession, log: Log, serving: Gateway, folder: Path) -> None:
        self.url = url
        self.http = http
        self.log = log
        self.serving = serving
        self.folder = folder
        self.groups: list[TrajectoryGroup] = []

    async def post(
        self, path: str, body: Any = None, *, key: str | None = KEY, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON."""
        return await self.send("POST", path, body, key=key, headers=headers)

    async def send(
        self, method: str, path: str, body: Any = None, *, key: str | None = KEY, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        given = {**({} if key is None else {"Authorization": f"Bearer {key}"}), **(headers or {})}
        async with self.http.request(method, self.url + path, data=raw, headers=given) as response:
            return response.status, await response.json()

    async def chat(self, *messages: dict[str, Any], conversation: str | None = None, **more: Any) -> Any:
        """The reply to these messages; anything but 200 fails the test."""
        headers = {} if conversation is None else {"X-Conversation-Id": conversation}
        body = {"model": "any", "messages": list(messages), **more}
        status, reply = await self.post("/v1/chat/completions", body, headers=headers)
        assert status == 200, reply
        return reply

    async def stream(self, path: str, body: dict[str, Any], *, key: str = KEY) -> list[bytes]:
        """The data of every event of a stream."""
        headers = {"Authorization": f"Bearer {key}"}
        async with self.http.post(self.url + path, json={**body, "stream": True}, headers=headers) as response:
            assert response.status == 200, await response.text()
            raw = await response.read()
        return [line.removeprefix(b"data: ") for line in raw.split(b"\n") if line.startswith(b"data: ")]

    def recorded(self) -> list[TreeBuilder]:
        """The trees on disk, folded from their events."""
        trees: list[TreeBuilder] = []
        for path in sorted(self.folder.glob("*/trees/*.log")):
            events = list(read_unnumbered(path))
            tree = TreeBuilder(events[0].prompt)
            for event in events:
                tree.apply(event)
            trees.append(tree)
        return trees


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(reply: Any) -> dict[str, Any]:
    """The message of a reply, as a client puts it into its history."""
    return reply["choices"][0]["message"]


def answered(call: dict[str, Any], text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call["id"], "content": text}


@asynccontextmanager
async def world(
    folder: Path,
    *,
    policy: Callable[[HfTokenizer], Callable[[GenerateRequest], Script]] = Adder,
    generator: Callable[[HfTokenizer], Any] | None = None,
    tokenizer: HfTokenizer | None = None,
    form: Literal["hermes", "arpo"] = "hermes",
    keys: Keys = KEYS,
    max_length: int = 4096,
    sampling: SamplingConfig | None = None,
    **serve: Any,
) -> AsyncGenerator[World, None]:
    """A gateway that trains on what it is told is worth it; `serve` are keys of the `[serve]` section.

    Another `generator` than the scripted policy keeps no log.
    """
    tokenizer = tokenizer or make_tokenizer(folder / "model")
    log = Log(ScriptedGenerator(policy(tokenizer)))
    behind = log if generator is None else generator(tokenizer)
    config = Config(
        model=HfModel(path=str(folder / "model")),
        data=DataConfig(path="none.parquet"),
        renderer=RendererConfig(format=form),
        rollout=RolloutConfig(sampling=sampling or SamplingConfig()),
        serve=ServeConfig(**{"port": 0, "train": True, **serve}),
    )
    groups: list[TrajectoryGroup] = []
    serving = gateway(
        config,
        generator=behind,
        tokenizer=tokenizer,
        max_length=max_length,
        keys=keys,
        records=Records(folder / "traffic"),
        on_group=groups.append,
    )
    async with serving.listening() as url, aiohttp.ClientSession() as http:
        made = World(url, http, log, serving, folder / "traffic")
        made.groups = groups
        yield made


def paths_of(trees: Sequence[TreeBuilder]) -> list[Int32]:
    """The tokens of every path of these trees."""
    return [tree.token_ids(path) for tree in trees for path in tree.paths]

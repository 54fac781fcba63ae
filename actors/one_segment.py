"""One segment of the policy, behind messages: what `Session.generate` gives; nothing of it is kept."""

from collections.abc import Sequence

import msgspec

from actors.gateway.dialogue import Dialogue
from actors.policy import Policy, Segment
from actors.runtime import LocalRuntime
from engine.branching import Chain
from engine.budget import Account
from engine.events import PathStarted
from engine.inference.router import Router
from engine.ledger import PathLedger
from engine.segment import SegmentSampler
from engine.tree import TreeBuilder
from engine.types import Prompt


async def one_segment(
    messages: list[dict[str, str]],
    *,
    name: str,
    runtime: LocalRuntime,
    router: Router,
    max_tokens: int | None,
    temperature: float | None,
    stop: Sequence[str],
) -> Segment:
    """Ask for one segment; `name` tells requests in flight apart, and chooses the seed."""
    config, replace = runtime.config.rollout, msgspec.structs.replace
    if temperature is not None:
        config = replace(config, sampling=replace(config.sampling, temperature=temperature))
    token_ids = runtime.renderer.render_prompt(messages)
    prompt = Prompt(prompt_id=name, epoch=0, row=0, token_ids=token_ids, question="", ground_truth="")
    tree = TreeBuilder(prompt)
    tree.apply(PathStarted(prompt_id=name, path=0))
    segments = SegmentSampler(
        tree,
        sampling=config.sampling,
        seed=runtime.config.run.seed,
        branching=Chain(),
        stream_interval=config.stream_interval,
        generator=router,
        renderer=runtime.renderer,
        emit=tree.apply,
        on_progress=lambda path: None,
    )
    policy = Policy(
        tree,
        tree.paths[0],
        segments=segments,
        dialogue=Dialogue(runtime.tokenizer, runtime.config.renderer, runtime.tools.specs),
        tools=runtime.tools,
        ledger=PathLedger(name, limit=0, expenses=Account(name), inherited=()),
        config=config,
        emit=tree.apply,
        branch=lambda agent, policy: False,
    )
    try:
        return await policy.sample(max_tokens=max_tokens, stop=stop)
    finally:
        router.forget(name)

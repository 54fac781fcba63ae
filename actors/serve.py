"""`arpo serve`: the policy behind a gateway, and, where training on traffic is switched on, a learner behind that."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from actors.checkpoint_folders import CheckpointFolders
from actors.config import Config
from actors.credit import credit
from actors.gateway.dialogue import Dialogue
from actors.gateway.keys import Keys, load_keys
from actors.gateway.online import OnlineTraining
from actors.gateway.records import Records
from actors.gateway.server import Gateway
from actors.gateway.store import Store
from actors.gateway.traffic_trees import Hearers, OnGroup, OnTree, ignore
from actors.gateway.turn import Turns
from actors.materials import materialise
from actors.run_dir import RunDir
from actors.runtime import LocalRuntime
from actors.sft import starting_model
from engine import journal as journals
from engine.errors import ConfigError
from engine.events import AnyEvent, Checkpointed
from engine.inference.router import Router
from engine.interfaces import Generator
from engine.journal import Journal
from engine.run_state import RunState
from engine.tokenizer import HfTokenizer
from engine.types import Version

logger = logging.getLogger(__name__)


async def serve(config: Config, run: RunDir, *, say: Callable[[str], None]) -> None:
    """Serve until it is cancelled; `say` gets the address. Bad input is refused before anything starts."""
    keys = load_keys(config.serve)
    ready = materialise(config)
    _check_learning(ready)
    async with LocalRuntime(ready, run.path) as runtime:
        with run.locked():
            run.write_config(config)
            model_path = await starting_model(ready, runtime, emit=lambda event: None)
            router = await runtime.start_generators(model_path)
            async with AsyncExitStack() as stack:
                training = None
                if ready.serve.train:
                    training = await stack.enter_async_context(_online(ready, run, runtime, model_path))
                serving = gateway(
                    ready,
                    generator=router,
                    tokenizer=runtime.tokenizer,
                    max_length=runtime.max_length,
                    keys=keys,
                    records=Records(run.path / "traffic" if ready.serve.record else None),
                    version=lambda: 0 if training is None else training.version,
                    on_group=ignore if training is None else training.offer,
                    on_delete=ignore if training is None else training.drop,
                )
                async with serving.listening() as url, asyncio.TaskGroup() as tasks:
                    say(f"{url}/v1 serves {ready.serve.model}")
                    if training is not None:
                        tasks.create_task(training.run(), name="online training")
                    await asyncio.Event().wait()


def gateway(
    config: Config,
    *,
    generator: Generator | Router,
    tokenizer: HfTokenizer,
    max_length: int,
    keys: Keys,
    records: Records,
    version: Callable[[], Version] = lambda: 0,
    on_group: OnGroup = ignore,
    on_delete: OnTree = ignore,
) -> Gateway:
    """The gateway of a configuration, in front of any generator."""
    # A router remembers where each tree lives until it is told that the tree is finished.
    on_close = generator.forget if isinstance(generator, Router) else ignore
    hears = Hearers(on_group=on_group, on_close=on_close, on_delete=on_delete)
    store = Store(config.serve, records=records, version=version, hears=hears)
    turns = Turns(
        generator,
        store,
        sampling=config.rollout.sampling,
        max_length=max_length,
        stream_interval=config.serve.stream_interval,
    )
    return Gateway(
        config.serve,
        keys=keys,
        store=store,
        turns=turns,
        make_dialogue=lambda specs: Dialogue(tokenizer, config.renderer, specs),
    )


@asynccontextmanager
async def _online(
    config: Config, run: RunDir, runtime: LocalRuntime, model_path: str
) -> AsyncGenerator[OnlineTraining, None]:
    """A learner, and the journal of what it does; it goes on where an earlier process made its last checkpoint."""
    from learner.algorithms.batch_credit import finish_batch

    folders = CheckpointFolders(run.checkpoints)
    state = _read_state(run, folders)
    trainer = await runtime.start_trainer(model_path)
    with Journal(run.journal) as journal:

        def emit(event: AnyEvent) -> None:
            journal.append(msgspec.structs.replace(event, t=time.time()))
            if isinstance(event, Checkpointed):
                folders.keep(event)

        yield OnlineTraining(
            config=config.train,
            batch_size=config.serve.batch_size,
            state=state,
            credit=lambda group: credit(group, config),
            credit_batch=lambda samples: finish_batch(samples, config.learner.advantage),
            trainer=trainer,
            generators=runtime.generators,
            checkpoint_path=lambda step: str(run.checkpoints / f"step-{step:06d}"),
            emit=emit,
        )


def _read_state(run: RunDir, folders: CheckpointFolders) -> RunState:
    """The checkpoints of earlier processes; what was trained behind the last one is not trained again."""
    state = RunState()
    state.is_there = folders.holds
    for event in journals.read(run.journal):
        if isinstance(event, Checkpointed):
            state.apply(event)
    folders.know(state.checkpoints)
    return state


def _check_learning(config: Config) -> None:
    """Refuse what traffic cannot be trained with."""
    sampling, learner = config.rollout.sampling, config.learner
    if config.serve.train and sampling.temperature != learner.temperature:
        raise ConfigError(
            f"clients sample at rollout.sampling.temperature = {sampling.temperature}, the learner assumes "
            f"{learner.temperature} - at $.learner.temperature"
        )
    alone = ("reinforce_pp", "reward")
    kind = type(learner.advantage).__struct_config__.tag
    if config.serve.train and config.serve.group_size == 1 and kind not in alone:
        raise ConfigError(
            f"a conversation alone says nothing to {kind!r}: use {', '.join(alone)}, or a group_size above 1 "
            "- at $.serve.group_size"
        )

"""Storage: room for published weights, in shared memory or in `runtime.weights_dir`, and on disk for checkpoints."""

import tempfile
from collections.abc import Iterator

from actors.checkpoint_folders import KEPT_CHECKPOINTS
from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, refused, warning
from actors.doctor.hosts import is_here
from actors.doctor.machine import SHARED_MEMORY
from actors.doctor.sizes import checkpoint_bytes, published_bytes, size
from actors.runtime import KEPT_WEIGHTS
from engine.inference.sglang_config import SglangConfig
from engine.inference.shape import ModelShape


def check_storage(case: Case) -> Iterator[Finding]:
    if case.shape is not None:
        yield from _who_sees_it(case)
        yield from _weights(case, case.shape)
        yield from _checkpoints(case, case.shape)


def _who_sees_it(case: Case) -> Iterator[Finding]:
    """Published weights are files: whoever reads them must see them."""
    generator, key = case.config.generator, "runtime.weights_dir"
    far = [url for url in case.urls if not is_here(url)]
    if isinstance(generator, SglangConfig) and far and generator.weights == "tensor":
        text = f"'tensor' hands over memory of this machine, and {far[0]} is another one"
        yield refused("generator.weights", text)
    if case.config.runtime.weights_dir is not None:
        return
    if isinstance(generator, SglangConfig) and far and generator.weights == "disk":
        yield refused(key, f"unset is memory of this machine, which the server at {far[0]} cannot read")
    elif case.is_on_ray:
        yield warning(key, "unset is memory of one node: a learner or a generator on another node cannot reach it")


def _weights(case: Case, shape: ModelShape) -> Iterator[Finding]:
    key, chosen = "runtime.weights_dir", case.config.runtime.weights_dir
    once = published_bytes(shape, case.config.learner)
    needed = KEPT_WEIGHTS * once
    text = f"{size(needed)} for {KEPT_WEIGHTS} versions of {size(once)}"
    if chosen is not None:
        yield _room(case, key, chosen, needed, text)
        return
    shared = case.machine.free_bytes(SHARED_MEMORY) or 0
    if shared > needed:
        yield _room(case, key, str(SHARED_MEMORY), needed, text)
    else:
        base = tempfile.gettempdir()
        text_here = f"{SHARED_MEMORY} has {size(shared)} free, too little: weights go through {base}"
        yield warning(key, case.here(text_here))
        yield _room(case, key, base, needed, text)


def _checkpoints(case: Case, shape: ModelShape) -> Iterator[Finding]:
    """The newest ones stay while the next is written; the model is exported at the end, and the best one on its way."""
    train, learner = case.config.train, case.config.learner
    once, export = checkpoint_bytes(shape, learner), published_bytes(shape, learner)
    number = KEPT_CHECKPOINTS + 1
    if train.steps is not None:
        number = min(number, -(-train.steps // train.checkpoint_every))
    num_exports = 1 if case.config.eval is None else 2
    checkpoints = "1 checkpoint" if number == 1 else f"{number} checkpoints"
    exports = f"{num_exports} of {size(export)} in Hugging Face form"
    needed = number * once + num_exports * export
    text = f"{size(needed)} for {checkpoints} of {size(once)} and {exports}"
    yield _room(case, "run.dir", case.config.run.dir, needed, text)


def _room(case: Case, key: str, folder: str, needed: int, text: str) -> Finding:
    free = case.machine.free_bytes(folder)
    if free is None:
        return warning(key, f"{text}; {folder} is not on this machine")
    if needed > free:
        return case.unfit(key, f"{text}; {folder} has {size(free)} free")
    return ok(key, case.here(f"{text}; {folder} has {size(free)} free"))

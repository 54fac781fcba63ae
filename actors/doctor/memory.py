"""Memory: whether what the learner and the generators take fits into a GPU, or into the machine where there is none."""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, refused, warning
from actors.doctor.gpus import seats_of, sharing_key
from actors.doctor.layout import learners
from actors.doctor.sizes import GIB, LearnerBytes, kv_token_bytes, learner_bytes, size, stage_parameters
from actors.sglang_server import CPU_KV_TOKENS
from engine.inference.sglang_config import SglangConfig
from engine.inference.shape import ModelShape
from learner.config import LearnerConfig

TIGHT = 0.9
"""Share of a GPU above which little is left for CUDA, for communication and for fragments."""
SGLANG_RESERVE = 10 * GIB
"""What SGLang leaves free of a large GPU, if it is not told."""
SGLANG_SHARE = 0.85
"""What it takes of a smaller one, about. It keeps as many tokens as go into that, and no more than it is told."""
PROCESS_BYTES = GIB // 2
"""Python, torch and Megatron in one process, before there is a model."""


def check_memory(case: Case) -> Iterator[Finding]:
    shape, limit = case.shape, case.memory_of_gpu
    if shape is None:
        return
    if case.learner_device == "cuda":
        for key, config in learners(case):
            taken = _learner(case, shape, key, config)
            yield _against(limit, key, taken.total, f"a rank of the learner takes {_parts(taken)}")
    if case.generator_device == "cuda" and case.num_launched:
        yield from _generator(case, shape, limit)
    if not case.is_on_ray and limit is not None:
        yield from _shared(case, shape, limit)
    if not case.is_elsewhere:
        yield from _host(case, shape)


def _learner(case: Case, shape: ModelShape, key: str, config: LearnerConfig) -> LearnerBytes:
    stages = {f"sft.{number}.learner": stage.max_tokens for number, stage in enumerate(case.config.sft)}
    longest = min(stages.get(key, case.longest_sequence), shape.max_positions)
    return learner_bytes(shape, config, row_tokens=max(config.micro_batch_tokens, longest))


def _parts(taken: LearnerBytes) -> str:
    undo = f", {size(taken.undo)} to undo several updates" if taken.undo else ""
    logits = f" and {size(taken.logits)} of logits" if taken.logits else ""
    state = f"{size(taken.state)} of weights, gradients and optimiser{undo}"
    return f"{size(taken.total)}: {state}, about {size(taken.activations)} of activations{logits}"


def _generator(case: Case, shape: ModelShape, limit: int | None) -> Iterator[Finding]:
    weights, token = _weights(case, shape), _token(case, shape)
    tokens, room = case.config.generator.max_kv_tokens, _room(case, shape, limit)
    if room is None and tokens is None:
        text = f"{size(weights)} of weights, and keys and values in the rest at {size(token)} a token"
        yield ok("generator", f"a generator takes {text} of each of its GPUs")
        return
    if room is not None and room < case.longest_sequence:
        text = f"behind {size(weights)} of weights there is room for keys and values of {room:,} tokens"
        yield refused("generator", f"{text}, and a path has up to {case.longest_sequence:,}")
        return
    if room is not None and tokens is not None and tokens > room:
        text = f"{tokens:,}, and there is room for about {room:,}: SGLang keeps no more"
        yield warning("generator.max_kv_tokens", text)
    tokens = min(tokens or room or 0, room or tokens or 0)
    text = f"{size(weights)} of weights and {size(tokens * token)} of keys and values of {tokens:,} tokens"
    yield _against(limit, "generator", weights + tokens * token, f"a generator takes {text} of each of its GPUs")


def _room(case: Case, shape: ModelShape, limit: int | None) -> int | None:
    """Tokens that SGLang keeps at most, whatever it is told; the embedded engine keeps what it is told, or fails."""
    if limit is None or not isinstance(case.config.generator, SglangConfig):
        return None
    static = (case.sglang.memory_fraction or _default_share(limit)) * limit
    return max(int((static - _weights(case, shape)) // _token(case, shape)), 0)


def _shared(case: Case, shape: ModelShape, limit: int) -> Iterator[Finding]:
    """GPUs that several processes of this machine take: each may fit, and all of them may not."""
    taken = {"learner": _learner(case, shape, "learner", case.config.learner).total}
    taken["generator"] = _generator_bytes(case, shape, limit)
    for gpu, names in sorted(seats_of(case).items()):
        total = sum(taken[name.split("-")[0]] for name in names)
        if len(names) > 1 and total > limit:
            text = f"{', '.join(names)} share GPU {gpu} and take {size(total)} of its {size(limit)}"
            yield refused(sharing_key(case), text)
            return


def _host(case: Case, shape: ModelShape) -> Iterator[Finding]:
    """What is on the CPU of this machine; the cold start's learners are gone when RL begins."""
    generators = 0
    if case.generator_device == "cpu":
        generators = case.num_launched * (_generator_bytes(case, shape, None) + PROCESS_BYTES)
    for key, config in learners(case):
        learner = 0
        if case.learner_device == "cpu":
            learner = config.world_size * (_learner(case, shape, key, config).total + PROCESS_BYTES)
        own = generators if key == "learner" else 0
        if total := learner + own:
            text = f"{size(total)} on the CPU: {size(learner)} of the learner, {size(own)} of the generators"
            yield _against(case.machine.memory_bytes, key, total, text, what="the machine")


def _generator_bytes(case: Case, shape: ModelShape, limit: int | None) -> int:
    """Of one rank of a generator."""
    room, tokens = _room(case, shape, limit), case.config.generator.max_kv_tokens
    tokens = tokens or room or CPU_KV_TOKENS
    return _weights(case, shape) + min(tokens, tokens if room is None else room) * _token(case, shape)


def _weights(case: Case, shape: ModelShape) -> int:
    args = case.sglang
    stages = range(args.pp_size if shape.num_layers >= args.pp_size else 1)
    counts = [stage_parameters(shape, stage=stage, num_stages=len(stages), tp_size=args.tp_size) for stage in stages]
    return max(counts) * case.generator_dtype_bytes


def _token(case: Case, shape: ModelShape) -> int:
    args = case.sglang
    return kv_token_bytes(shape, tp_size=args.tp_size, dtype_bytes=case.generator_dtype_bytes) // args.pp_size


def _default_share(limit: int) -> float:
    return 1 - SGLANG_RESERVE / limit if limit > 60 * GIB else SGLANG_SHARE


def _against(limit: int | None, key: str, total: int, text: str, *, what: str = "a GPU") -> Finding:
    if limit is None:
        return ok(key, text)
    text = f"{text}; {what} has {size(limit)}"
    if total > limit:
        return refused(key, text)
    return warning(key, f"{text}, which leaves little") if total > TIGHT * limit else ok(key, text)

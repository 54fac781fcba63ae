"""Materials: what a run is made from; models and tasks that the configuration describes are made on the spot.

What is made lies in `<run.dir>/made/`, under a fingerprint of what describes it, and is made once. What describes it is
what files say, and not where they are or how their paths are written: a folder `made/` may be moved or copied.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from actors.config import Config, HfModel, TinyModel
from engine.dataset import DataConfig
from engine.errors import ConfigError, DataError
from tools.drill import format_drill
from tools.toolworld import ToolworldConfig, ToolworldFiles

if TYPE_CHECKING:
    from engine.dataset_files import Row

logger = logging.getLogger(__name__)

WORLD = "world:"
DRILL = "prompts:drill"
"""Stands for traces made from the run's own prompts, which teach nothing but the format."""
NUM_DRILLS = 512
MAKERS = 2
"""Raised when the same description comes to something else: what older makers left in `made/` is then not used."""
BPE_TEXTS = 2000
"""Prompts a made tokenizer is trained on; more change little."""


def materialise(config: Config) -> Config:
    """The configuration with every path a real one: worlds generated, models made, nothing left to describe.

    Raises `ConfigError` or `DataError`, one line, for what is not there.
    """
    made = Path(config.run.dir) / "made"
    if config.world is not None:
        files = make_world(config.world, made)
        config = _with_world(config, files)
    if unresolved := [path for path in _paths(config) if path.startswith(WORLD)]:
        raise ConfigError(f"{unresolved[0]!r} needs a [world] section, and one of {', '.join(_parts())}")
    if any(DRILL in stage.traces for stage in config.sft):
        drills = make_drills(config, made)
        config = _with_traces(config, lambda path: drills if path == DRILL else path)
    if isinstance(config.model, TinyModel):
        config = msgspec.structs.replace(config, model=HfModel(path=make_model(config, config.model, made)))
    assert isinstance(config.model, HfModel)
    if not (Path(config.model.path) / "config.json").exists():
        raise ConfigError(f"{config.model.path}: no model folder there (config.json is missing) - at $.model.path")
    return config


def make_world(world: ToolworldConfig, made: Path) -> ToolworldFiles:
    """Generate the task, or find it where it was generated before."""
    from tools.toolworld import generate

    folder = made / f"world-{fingerprint(world)}"

    def make(target: Path) -> None:
        files = generate(world, target)
        (target / "files.json").write_bytes(msgspec.json.encode(files))
        logger.info("world: %d passages, %d words in %s", files.num_passages, files.num_words, folder)

    make_once(folder, make)
    files = msgspec.json.decode((folder / "files.json").read_bytes(), type=ToolworldFiles)
    moved = {name: str(folder / Path(getattr(files, name)).name) for name in _parts()}
    return msgspec.structs.replace(files, **moved)


def make_drills(config: Config, made: Path) -> str:
    """Write the format drill for the first prompts of the data, or find it where it was written before."""
    folder = made / f"drill-{fingerprint(_described(config, made))}"

    def make(target: Path) -> None:
        rows = islice(_rows(config), NUM_DRILLS)
        drills = [format_drill(list(row.messages), rng=Random(row.index)) for row in rows]
        (target / "traces.jsonl").write_bytes(b"".join(msgspec.json.encode(trace) + b"\n" for trace in drills))

    make_once(folder, make)
    return str(folder / "traces.jsonl")


def make_model(config: Config, model: TinyModel, made: Path) -> str:
    """Make the tiny model and its tokenizer, or find them where they were made before."""
    source = config.world if model.tokenizer == "words" and config.world else _described(config, made)
    folder = made / f"model-{fingerprint((model, source))}"

    def make(target: Path) -> None:
        from engine.inference.tiny import make_tiny_model
        from engine.tokenizer import load_tokenizer

        _make_tokenizer(config, model, target)
        tokenizer = load_tokenizer(target)
        make_tiny_model(
            target,
            kind=model.shape,
            # A round number: tensor-parallel ranks must be able to share the vocabulary.
            vocab_size=-(-tokenizer.vocab_size // 64) * 64,
            hidden_size=model.hidden_size,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            intermediate_size=model.intermediate_size,
            tie=model.tie,
            seed=model.seed,
            init_std=model.init_std,
            embedding_std=model.embedding_std,
            qk_norm=model.qk_norm,
            max_positions=model.max_positions,
            rope_theta=model.rope_theta,
            eos_token_ids=tokenizer.eos_token_ids,
        )

    make_once(folder, make)
    return str(folder)


def _make_tokenizer(config: Config, model: TinyModel, target: Path) -> None:
    from engine.tokenizer_tiny import make_bpe_tokenizer, make_word_tokenizer

    if model.tokenizer == "bpe":
        make_bpe_tokenizer(target, texts=_texts(config), vocab_size=model.vocab_size)
        return
    if config.world is None:
        raise ConfigError("model.tokenizer = 'words' needs a [world] section - at $.model.tokenizer")
    files = make_world(config.world, Path(config.run.dir) / "made")
    make_word_tokenizer(target, words=msgspec.json.decode(Path(files.words).read_bytes(), type=list[str]))


def _texts(config: Config) -> Iterator[str]:
    # The drill's own texts are in there too, so that its words are tokens.
    for row in islice(_rows(config), BPE_TEXTS):
        yield from (message["content"] for message in row.messages)
        yield from (segment.text for segment in format_drill([], rng=Random(row.index)).segments)


def _rows(config: Config) -> "Iterator[Row]":
    from engine.dataset_files import read_rows

    data = config.data
    return iter(
        read_rows(Path(data.path), prompt=data.prompt_column, answer=data.answer_column, source=data.source_column)
    )


def _described(config: Config, made: Path) -> DataConfig:
    return msgspec.structs.replace(config.data, path=identity(config.data.path, made))


def _with_world(config: Config, files: ToolworldFiles) -> Config:
    def real(path: str) -> str:
        if not path.startswith(WORLD):
            return path
        name = path.removeprefix(WORLD)
        if name not in _parts():
            raise ConfigError(f"{path!r}: a world has {', '.join(_parts())}")
        return getattr(files, name)

    replace = msgspec.structs.replace
    config = replace(config, data=replace(config.data, path=real(config.data.path)))
    if config.eval is not None:
        data, validation = config.eval.data, config.eval.validation
        data = replace(data, path=real(data.path))
        validation = None if validation is None else replace(validation, path=real(validation.path))
        config = replace(config, eval=replace(config.eval, data=data, validation=validation))
    if config.tools.search is not None:
        search = replace(config.tools.search, corpus=real(config.tools.search.corpus))
        config = replace(config, tools=replace(config.tools, search=search))
    return _with_traces(config, real)


def _with_traces(config: Config, real: Callable[[str], str]) -> Config:
    replace = msgspec.structs.replace
    stages = (replace(stage, traces=tuple(real(path) for path in stage.traces)) for stage in config.sft)
    return replace(config, sft=tuple(stages))


def _paths(config: Config) -> list[str]:
    paths = [config.data.path, *(path for stage in config.sft for path in stage.traces)]
    if config.eval is not None:
        paths.append(config.eval.data.path)
        if config.eval.validation is not None:
            paths.append(config.eval.validation.path)
    if config.tools.search is not None:
        paths.append(config.tools.search.corpus)
    return paths


def _parts() -> tuple[str, ...]:
    return ("corpus", "drills", "sft", "test", "train", "valid", "words")


def fingerprint(value: object) -> str:
    """A short name for what a described thing is made of."""
    return hashlib.blake2b(msgspec.json.encode((MAKERS, value), order="deterministic"), digest_size=6).hexdigest()


def identity(path: str | Path, made: Path) -> str:
    """What stands for a path in a description: of what was made its name there, of a file its name and what it says.

    A model folder of somebody else is too large to be read for that: where it is, and the sizes and times of its files.
    """
    path = Path(path).resolve()
    if path.is_relative_to(made.resolve()):
        return path.relative_to(made.resolve()).as_posix()
    if path.is_file():
        with path.open("rb") as file:
            return f"{path.name} {hashlib.file_digest(file, _digest).hexdigest()}"
    files = sorted(file for file in path.glob("*") if file.is_file())
    return " ".join([str(path), *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)])


def _digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Fill `folder` by `make`, whole or not at all, unless it is there already."""
    if folder.exists():
        return
    try:
        with whole_folder(folder) as scratch:
            make(scratch)
    except OSError as error:
        raise DataError(f"{folder}: {error}") from error


@contextmanager
def whole_folder(target: Path) -> Generator[Path, None, None]:
    """An empty folder beside `target`, which gets its name when the block ends, and goes when the block raises.

    Where somebody else was faster, theirs stays: what a folder is made of is in its name, so it is the same.
    """
    scratch = target.with_name(f".{target.name}-{uuid4().hex[:8]}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        try:
            scratch.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

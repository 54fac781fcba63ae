"""What each command does, and what a person sees of it; errors become one line and an exit code here, once."""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from actors.cli import BAD_INPUT, INTERRUPTED, REFUSED
from actors.config import Config
from actors.interrupts import interruptible
from engine.errors import ArpoError, ConfigError, DataError, cause

if TYPE_CHECKING:
    from actors.remote import RemoteTrainer

T = TypeVar("T")

logger = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Carry out one parsed command line and return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        sys.stderr.write("arpo: interrupted\n")
        return INTERRUPTED
    except (ArpoError, BaseExceptionGroup) as error:
        first = cause(error)
        if not isinstance(first, ArpoError):
            raise
        sys.stderr.write(f"arpo: {first}\n")
        return BAD_INPUT if isinstance(first, ConfigError | DataError) else 1


def _config(arguments: argparse.Namespace, **shorthands: Any) -> Config:
    """The configuration with its overrides; a shorthand is an override that was given as an option."""
    overrides = [*arguments.overrides, *(f"{key}={_toml(v)}" for key, v in shorthands.items() if v is not None)]
    return Config.load(arguments.config, *overrides)


def _toml(value: str | int) -> str:
    # JSON's escapes are TOML's, but for pairs of surrogates.
    return json.dumps(value, ensure_ascii=False)


def _output(path: str, *, option: str) -> Path:
    """Where a file will be written; refused now, rather than when there is something to write."""
    if not Path(path).parent.is_dir():
        raise ConfigError(f"{option} {path}: no such folder {Path(path).parent}")
    if Path(path).is_dir():
        raise ConfigError(f"{option} {path}: a folder, not a file")
    return Path(path)


def _train(arguments: argparse.Namespace) -> int:
    from actors.display import Display
    from actors.run_dir import RunDir, choose
    from actors.train import train

    config = _config(arguments, **{"data.path": arguments.data})
    chosen: RunDir = choose(config, stem=Path(arguments.config).stem, fresh=arguments.fresh)
    with Display(chosen.path) as display:
        if chosen.is_finished and not arguments.fresh:
            display.note(f"{chosen.path} is finished already; --fresh trains it anew, run.name=... another one")
        else:
            display.preparing()
            interruptible(train(config, chosen, watcher=display, is_fresh=arguments.fresh))
        if chosen.summary is not None:
            display.summary(chosen.summary)
    return 0


def _sft(arguments: argparse.Namespace) -> int:
    from actors.display import Display
    from actors.materials import materialise
    from actors.run_dir import choose
    from actors.runtime import LocalRuntime
    from actors.sft import StartingModel

    config = _config(arguments)
    if not config.sft:
        raise ConfigError(f"{arguments.config}: no [[sft]] section - at $.sft")
    if config.run.name is not None:  # the folder without the suffix is that of an RL run
        named = msgspec.structs.replace(config.run, name=f"{config.run.name}-sft")
        config = msgspec.structs.replace(config, run=named)
    chosen = choose(config, stem=f"{Path(arguments.config).stem}-sft", fresh=False)

    async def main() -> None:
        ready = materialise(config)
        async with LocalRuntime(ready, chosen.path) as runtime:
            model = StartingModel(ready, runtime)
            with chosen.locked():
                chosen.write_config(config)
                shutil.copytree(await model.make(emit=display.event), chosen.path / "hf", dirs_exist_ok=True)

    with Display(chosen.path) as display:
        display.preparing()
        interruptible(main())
        display.note(f"the model is in {chosen.path / 'hf'}")
    return 0


def _rollout(arguments: argparse.Namespace) -> int:
    from actors.display import Display
    from actors.rollout import rollout

    config = _config(arguments, **{"data.path": arguments.data, "data.limit": arguments.limit})
    out = _output(arguments.out, option="--out")
    with tempfile.TemporaryDirectory(prefix="arpo-rollout-") as scratch, Display(out) as display:
        display.preparing()
        totals = interruptible(
            rollout(
                config,
                out=out,
                run_dir=Path(scratch),
                concurrency=arguments.concurrency,
                watcher=display,
            )
        )
        display.table("rollouts", totals)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from actors.display import Display
    from actors.eval_command import Evaluate, show

    data: list[str] = arguments.data or []
    shorthands = {"eval.data.path": data[0] if data else None, "eval.samples": arguments.k}
    shorthands["eval.sampling.kind"] = arguments.sampling
    config = None if arguments.config is None else _config(arguments, **shorthands)
    json_file = None if arguments.json is None else _output(arguments.json, option="--json")
    work = Evaluate(
        config,
        source=arguments.config or "",
        data=data,
        folder=None if arguments.out is None else Path(arguments.out),
        predictions=[Path(path) for path in arguments.predictions or ()],
    )
    with Display(Path(arguments.config or arguments.predictions[0])) as display:
        display.preparing()
        board = interruptible(work.run(watcher=display))
        show(board, display, folder=work.folder)
    encoded = msgspec.json.format(msgspec.json.encode(board), indent=2).decode() + "\n"
    sys.stdout.write(encoded)
    if json_file is not None:
        json_file.write_text(encoded, encoding="utf-8")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from actors.doctor.visit import visit

    is_fine = visit(
        None if arguments.config is None else _config(arguments),
        subject=arguments.config or "this machine",
        gpu_memory_gib=arguments.gpu_memory_gib,
        num_gpus=arguments.gpus,
        as_json=arguments.json,
    )
    return 0 if is_fine else REFUSED


def _show_config(arguments: argparse.Namespace) -> int:
    from actors.effective import shown

    sys.stdout.write(shown(arguments.config, arguments.overrides, is_reference=arguments.reference))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from actors.run_dir import choose
    from actors.serve import serve

    config = _config(arguments, **{"serve.host": arguments.host, "serve.port": arguments.port})
    if config.run.name is not None:  # the folder without the suffix is that of an RL run
        named = msgspec.structs.replace(config.run, name=f"{config.run.name}-serve")
        config = msgspec.structs.replace(config, run=named)
    chosen = choose(config, stem=f"{Path(arguments.config).stem}-serve", fresh=False)
    interruptible(serve(config, chosen, say=_say))
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    from actors.ray_submit import Job, submit  # the door of ray

    wheel = None if arguments.wheel is None else Path(arguments.wheel)
    job = Job(Path(arguments.config), arguments.overrides, python=arguments.python, wheel=wheel)
    return interruptible(submit(job, address=arguments.address, say=_say))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _bench(arguments: argparse.Namespace) -> int:
    from actors.bench import NAMES
    from actors.bench_command import bench

    bench(
        NAMES if arguments.name == "all" else (arguments.name,),
        json_file=None if arguments.json is None else _output(arguments.json, option="--json"),
        html_file=None if arguments.html is None else _output(arguments.html, option="--html"),
        is_quick=arguments.quick,
        has_trl=arguments.with_trl,
        records=Path(arguments.records),
        **{key: getattr(arguments, key) for key in ("sglang_python", "device", "overrides", "seeds", "jobs", "arms")},
    )
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from actors.display import Display
    from actors.replay import dump_batch, replay
    from actors.run_dir import RunDir

    run_dir = RunDir(Path(arguments.run))
    if arguments.dump_batch is not None:
        dump_batch(run_dir, arguments.dump_batch, write=sys.stdout.buffer.write)
        return 0
    with Display(run_dir.path) as display:
        found = interruptible(replay(run_dir, until=arguments.until, watcher=display))
        if found.first_step > 1:
            display.note(f"the journal goes back to step {found.first_step}, where the replay began")
        for difference in found.differences:
            display.note(difference)
        if not found.differences:
            steps = f"steps {found.first_step} to {found.last_step}"
            display.note(f"{steps} and {found.num_checkpoints} checkpoints are the same, bit for bit")
    return REFUSED if found.differences else 0


def _view(arguments: argparse.Namespace) -> int:
    from actors.view.commands import trace, watch

    return watch(arguments) if arguments.command == "watch" else trace(arguments)


def _export(arguments: argparse.Namespace) -> int:
    from actors.materials import materialise
    from actors.run_dir import RunDir
    from actors.runtime import LocalRuntime

    run_dir = RunDir(Path(arguments.run))
    config = run_dir.config
    if config is None:
        raise ConfigError(f"{run_dir.path}: no run there (config.json is missing)")
    checkpoints = sorted(run_dir.checkpoints.glob("step-*"))
    if not checkpoints:
        raise DataError(f"{run_dir.checkpoints}: no checkpoint yet")

    async def main() -> None:
        async with LocalRuntime(materialise(config), Path(scratch)) as runtime:
            trainer = await runtime.start_trainer(runtime.model_path)
            await _load_newest(trainer, checkpoints)
            await trainer.export_hf(arguments.hf)

    with tempfile.TemporaryDirectory(prefix="arpo-export-") as scratch:
        interruptible(main())
    return 0


async def _load_newest(trainer: "RemoteTrainer", checkpoints: Sequence[Path]) -> None:
    """The newest checkpoint that is whole. Raises `DataError` where none is."""
    for path in reversed(checkpoints):
        try:
            await trainer.load(str(path))
        except DataError as error:
            if path == checkpoints[0]:
                raise
            logger.warning("%s; exporting the checkpoint before it", error)
        else:
            return


COMMANDS = {
    "train": _train,
    "sft": _sft,
    "rollout": _rollout,
    "doctor": _doctor,
    "config": _show_config,
    "serve": _serve,
    "submit": _submit,
    "eval": _eval,
    "bench": _bench,
    "replay": _replay,
    "export": _export,
    "watch": _view,
    "trace": _view,
}

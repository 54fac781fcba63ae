"""A run of Weights & Biases: the one place that imports it."""

import uuid
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from actors.config import Config
from actors.metrics_config import WandbConfig
from engine.config import to_json

# Not there for whoever checks types without it.
wandb: Any = import_module("wandb")


class WandbSink:
    """Figures with their step as the axis. A run that goes on is the same run there, by the id in its folder."""

    is_rewritten = False

    def __init__(self, config: WandbConfig, run_config: Config, folder: Path) -> None:
        name = folder / "wandb-id"
        if not name.exists():
            name.write_text(uuid.uuid4().hex[:12], encoding="ascii")
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            dir=str(folder),
            id=name.read_text(encoding="ascii"),
            name=folder.name,
            resume="allow",
            reinit="create_new",  # several sessions of one process are several runs
            config=msgspec.json.decode(to_json(run_config)),  # without secrets
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"step": step, **figures})

    def close(self) -> None:
        self._run.finish()

"""`python -m actors.report RUN`: the report of a run as it stands, finished or not; needs the run's model."""

import sys
from pathlib import Path

from actors.config import HfModel
from actors.materials import materialise
from actors.report.report import write_report
from actors.run_dir import RunDir
from engine.errors import ArpoError, ConfigError
from engine.tokenizer import load_tokenizer


def main(folder: str) -> Path:
    """Write it and return its path. Raises `ConfigError` for a folder that holds no run."""
    run = RunDir(Path(folder))
    if run.config is None:
        raise ConfigError(f"{folder}: no run lies there")
    model = materialise(run.config).model
    assert isinstance(model, HfModel), "materialised"
    tokenizer = load_tokenizer(model.path)
    return write_report(run, text=lambda token_ids: tokenizer.decode([int(i) for i in token_ids]))


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{main(*sys.argv[1:])}\n")
    except ArpoError as error:
        sys.exit(f"arpo: {error}")

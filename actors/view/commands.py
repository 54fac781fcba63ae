"""What `arpo watch` and `arpo trace` do."""

import argparse
import os
import secrets
import sys
from pathlib import Path

from actors.interrupts import interruptible
from actors.run_dir import RunDir
from actors.view.server import WatchServer
from engine.errors import ConfigError
from engine.loopback import is_loopback

TOKEN = "ARPO_WATCH_TOKEN"


def watch(arguments: argparse.Namespace) -> int:
    """Serve the page of a run until interrupted, which is how it ends and no failure."""
    from actors.view.run_view import RunView

    run = _run(arguments.run)
    token = os.environ.get(TOKEN) or None
    if token is None and not is_loopback(arguments.host):
        token = secrets.token_urlsafe(24)
    server = WatchServer(RunView(run), host=arguments.host, port=arguments.port, token=token)

    async def main() -> None:
        async with server.listening() as url:
            _say(f"{run.path} at {url}")
            await server.follow()

    try:
        interruptible(main())
    except KeyboardInterrupt:
        return 0
    return 0


def trace(arguments: argparse.Namespace) -> int:
    """Write the page of a run as one file, or the run as a Perfetto trace."""
    from actors.view.trace import write_run_perfetto, write_trace

    run = _run(arguments.run)
    for option in ("out", "perfetto"):
        target = getattr(arguments, option)
        if target is not None and not Path(target).parent.is_dir():
            raise ConfigError(f"--{option} {target}: no such folder {Path(target).parent}")
    if arguments.perfetto is not None:
        num_events = write_run_perfetto(run, Path(arguments.perfetto))
        _say(f"{arguments.perfetto}: {num_events:,} events, for ui.perfetto.dev")
    if arguments.perfetto is None or arguments.out is not None:
        out = None if arguments.out is None else Path(arguments.out)
        _say(str(write_trace(run, target=out, max_trees=arguments.trees)))
    return 0


def _run(folder: str) -> RunDir:
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder}: no such folder")
    return RunDir(Path(folder))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

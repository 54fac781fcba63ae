"""`arpo submit`: a training run as a Ray job; packs the code, streams the log, and ends as the job ends.

The job is `arpo train CONFIG runtime.backend=ray ...` on the cluster. This project is sent along, as the checkout or as
a wheel; torch and the like are the cluster's own, and are compared on every node when the job starts (`ray_nodes`).
"""

import asyncio
import contextlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.job_submission import JobStatus, JobSubmissionClient

from actors.config import Config
from actors.ray_nodes import versions
from engine.config_layers import is_file
from engine.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
EXCLUDED = (
    ".git",
    ".venv",
    ".venv-*",
    ".cache",
    "runs",
    "data",
    "build",
    "dist",
    "__pycache__",
    "*.parquet",
    "*.safetensors",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)
"""Of a checkout, what no node needs: environments, runs and data."""
CONNECT_S = 15.0
ACCEPT_S = 60.0
"""How long a cluster may say that it takes no jobs yet."""
STOP_S = 120.0
"""How long a job that was asked to stop may take to leave a run that can go on."""
INTERRUPTED = 75


class Job:
    """One submission."""

    def __init__(self, config_file: Path, overrides: Sequence[str], *, python: str, wheel: Path | None) -> None:
        """Raises `ConfigError` for a configuration that does not decode, or files that are not there."""
        config = Config.load(config_file, *overrides, "runtime.backend=ray")
        self._python = python
        self._wheel = wheel
        if wheel is not None and not wheel.is_file():
            raise ConfigError(f"--wheel {wheel}: no such file")
        self._is_checkout = wheel is None
        if self._is_checkout and not (ROOT / "pyproject.toml").exists():
            raise ConfigError("this is no checkout; name the wheel that the cluster is to run: --wheel FILE")
        self._folder = ROOT if self._is_checkout else config_file.resolve().parent
        self._config = self._sent(config_file)
        # A layer that is not here is a shipped one, which every node has.
        self._layers = {o: self._sent(Path(o)) for o in overrides if is_file(o) and Path(o).is_file()}
        self.overrides = [*(str(self._layers.get(o, o)) for o in overrides), "runtime.backend=ray"]
        if not Path(config.run.dir).is_absolute():
            # The job's own folder is a copy that goes away with it.
            self.overrides.append(f"run.dir={Path(config.run.dir).absolute()}")
        self._threads = config.runtime.threads

    def _sent(self, file: Path) -> Path:
        """Where the job finds a file of configuration: relative to the folder that is sent."""
        try:
            return file.resolve().relative_to(self._folder)
        except ValueError:
            what = "the checkout that is sent" if self._is_checkout else "the folder of the first one"
            raise ConfigError(f"{file}: a configuration lies in {what}, {self._folder}") from None

    @property
    def entrypoint(self) -> str:
        """What the cluster runs."""
        words = [self._python, "-m", "actors.cli", "train", str(self._config), *self.overrides]
        return shlex.join(words)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """What the cluster gets for it."""
        env: dict[str, Any] = {
            "working_dir": str(self._folder),
            "excludes": list(EXCLUDED),
            "env_vars": {"OMP_NUM_THREADS": str(self._threads), "PYTHONUNBUFFERED": "1"},
        }
        if self._wheel is not None:
            env["py_modules"] = [str(self._wheel)]
            files = [self._config, *self._layers.values()]
            # a file comes back only where its folders do
            kept = {part for file in files for part in (file, *file.parents) if part != Path()}
            env["excludes"] = ["*", *sorted(f"!{part}" for part in kept)]
        return env


async def submit(job: Job, *, address: str, say: Callable[[str], None]) -> int:
    """Run a job to its end and return its exit code; its log goes to `say`, a line at a time.

    Cancelling stops the job, and waits until its run is one that can go on. Raises `ConfigError` where no cluster
    answers.
    """
    client = await _client(address)
    job_id = await _submitted(client, job)
    say(f"job {job_id}: {job.entrypoint}")
    say(f"every node needs {', '.join(f'{name} {version}' for name, version in sorted(versions().items()))}")
    try:
        await _follow(client, job_id, say)
    except asyncio.CancelledError:
        await asyncio.to_thread(client.stop_job, job_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await _follow(client, job_id, say)
        raise
    info = await asyncio.to_thread(client.get_job_info, job_id)
    if info.status is JobStatus.SUCCEEDED:
        return 0
    if info.status is JobStatus.STOPPED:
        return INTERRUPTED
    say(f"job {job_id}: {info.message}")
    return info.driver_exit_code or 1


async def _submitted(client: JobSubmissionClient, job: Job) -> str:
    """The job's id. A cluster that has just come up has no agent for jobs yet, and says so."""
    give_up_at = asyncio.get_running_loop().time() + ACCEPT_S
    while True:
        try:
            return await asyncio.to_thread(
                lambda: client.submit_job(entrypoint=job.entrypoint, runtime_env=job.runtime_env)
            )
        except RuntimeError as error:
            if "try again later" not in str(error) or asyncio.get_running_loop().time() > give_up_at:
                raise ConfigError(f"the cluster refused the job: {' '.join(str(error).split())[:300]}") from error
            await asyncio.sleep(1.0)


async def _follow(client: JobSubmissionClient, job_id: str, say: Callable[[str], None]) -> None:
    """Say the log until the job has ended."""
    while True:
        async for piece in client.tail_job_logs(job_id):
            for line in piece.splitlines():
                say(line)
        status = await asyncio.to_thread(client.get_job_status, job_id)
        if status.is_terminal():
            return


async def _client(address: str) -> JobSubmissionClient:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise ConfigError(f"--address is that of the dashboard, such as http://head:8265, got {address!r}")
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
            writer.close()
            return await asyncio.to_thread(JobSubmissionClient, address)
    except (OSError, RuntimeError, TimeoutError) as error:
        reason = str(error) or f"no answer within {CONNECT_S:g} s"
        raise ConfigError(f"no Ray cluster at {address}: {reason}") from None

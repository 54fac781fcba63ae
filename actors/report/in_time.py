"""A report that is waited for no longer than a moment: that of a run which was interrupted."""

import asyncio
import sys

from actors.process import end_process, environment
from actors.run_dir import RunDir

PATIENCE_S = 5.0
"""Enough for a run of some steps; a long run takes longer, and gets its report when it has gone on to its end."""


async def report_in_time(run: RunDir, *, patience_s: float = PATIENCE_S) -> bool:
    """Write the report of a run, or leave it be where that takes longer; True where it was written.

    A process of its own does it: it can be ended, and what it is made of is read from the run's folder alone.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "actors.report",
        str(run.path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(threads=1),
        start_new_session=True,
    )
    try:
        await end_process(process, patience_s=patience_s)
    except BaseException:
        process.kill()
        raise
    return process.returncode == 0

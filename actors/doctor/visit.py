"""Visit: one call of the doctor, from what is to be examined to what a person, or a program, gets to read."""

import shutil
import sys
from pathlib import Path

import msgspec

from actors.config import Config
from actors.display import Display
from actors.doctor.case import Case
from actors.doctor.environment import check_environment
from actors.doctor.examine import examine
from actors.doctor.lines import lines_of
from actors.doctor.machine import Machine
from actors.doctor.sizes import GIB


def visit(
    config: Config | None, *, subject: str, gpu_memory_gib: int | None, num_gpus: int | None, as_json: bool
) -> bool:
    """Examine a configuration, or the machine alone; returns whether nothing was refused.

    People read stderr, as everywhere; a list of JSON goes to stdout.
    """
    if config is None:
        findings = list(check_environment(Machine()))
    else:
        gpu_bytes = None if gpu_memory_gib is None else gpu_memory_gib * GIB
        findings = examine(Case(config=config, machine=Machine(), gpu_bytes=gpu_bytes, num_gpus=num_gpus))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode() + "\n")
    else:
        width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
        with Display(Path(subject)) as display:
            for line in lines_of(findings, subject=subject, width=width):
                display.note(line)
    return all(finding.level != "refused" for finding in findings)

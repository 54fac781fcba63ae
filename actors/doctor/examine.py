"""Examine: every check of the doctor, in the order in which a person wants to know."""

from collections.abc import Callable, Iterable

from actors.doctor.batches import check_batches
from actors.doctor.budgets import check_budgets
from actors.doctor.case import Case
from actors.doctor.cold_start import check_cold_start
from actors.doctor.data import check_data
from actors.doctor.finding import Finding, warning
from actors.doctor.forks import check_forks
from actors.doctor.gpus import check_gpus
from actors.doctor.layout import check_layouts
from actors.doctor.lengths import check_lengths
from actors.doctor.memory import check_memory
from actors.doctor.programs import check_programs
from actors.doctor.sampling import check_sampling
from actors.doctor.steps import check_steps
from actors.doctor.storage import check_storage
from actors.doctor.tools import check_tools


def check_model(case: Case) -> Iterable[Finding]:
    return case.model.findings


CHECKS: tuple[Callable[[Case], Iterable[Finding]], ...] = (
    check_model,
    check_data,
    check_cold_start,
    check_layouts,
    check_gpus,
    check_memory,
    check_storage,
    check_programs,
    check_tools,
    check_lengths,
    check_batches,
    check_budgets,
    check_forks,
    check_sampling,
    check_steps,
)


def examine(case: Case) -> list[Finding]:
    """What all checks find."""
    findings = [finding for check in CHECKS for finding in check(case)]
    if case.is_elsewhere:
        text = "the run is meant for other machines: what this one lacks is a warning"
        findings.insert(0, warning("runtime" if case.is_on_ray else "generator.device", text))
    return findings

"""Tools: whether what they need is here, and whether programs of a policy run apart from this machine."""

from collections.abc import Iterator

from actors.doctor.case import Case
from actors.doctor.finding import Finding, ok, warning
from actors.doctor.machine import Machine
from engine.errors import ToolError
from tools.needs import Need, needs
from tools.python_config import PythonConfig


def check_tools(case: Case) -> Iterator[Finding]:
    for need in needs(case.config.tools):
        yield from _check_need(case, need)
    if (python := case.config.tools.python) is not None:
        yield from _check_python(case, python)


def _check_need(case: Case, need: Need) -> Iterator[Finding]:
    key = f"tools.{need.key}"
    if need.kind == "variable" and not case.machine.has_variable(need.name):
        yield case.unfit(key, f"the environment variable {need.name} is not set")
    if need.kind == "package" and case.machine.version(need.name) is None:
        yield case.unfit(key, f"it needs {need.name}: pip install 'arpo-engine[{need.extra}]'")


def _check_python(case: Case, python: PythonConfig) -> Iterator[Finding]:
    if python.url:
        yield ok("tools.python.url", f"programs run at {python.url}, under its limits")
        return
    try:
        found = case.machine.isolation(python)
    except ToolError as error:
        yield case.unfit("tools.python.interpreter", str(error))
        return
    if found.is_full:
        yield ok("tools.python", str(found))
    elif python.require_isolation:
        yield case.unfit("tools.python.require_isolation", str(found))
    else:
        yield warning("tools.python.isolation", case.here(str(found)))


def isolation_here(machine: Machine) -> Finding:
    """What a configuration that says nothing of it would get."""
    key = "python tool"
    try:
        found = machine.isolation(PythonConfig())
    except ToolError as error:
        return warning(key, str(error))
    return ok(key, str(found)) if found.is_full else warning(key, str(found))

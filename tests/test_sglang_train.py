"""Training on two real SGLang servers of which one dies on the way: the run goes on, each prompt is accounted for."""

import re
from pathlib import Path

import psutil
import pytest

from engine.events import TokensSampled
from tests.test_parity import SGLANG
from tests.test_resume import STEPS, Place, check_finished

pytestmark = [pytest.mark.real, pytest.mark.timeout(420)]


def test_a_run_goes_on_when_one_of_two_servers_is_killed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    sglang = ["generator.kind=sglang", f"generator.python={SGLANG.python}", "runtime.num_generators=2"]
    process = place.start("shot", *sglang)
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if f" 4/{STEPS}" in line:
                schedulers = [
                    p for p in psutil.Process(process.pid).children(recursive=True) if "sglang::scheduler" in p.name()
                ]
                assert len(schedulers) == 2, schedulers
                schedulers[0].kill()
        assert process.wait(timeout=60) == 0, "".join(said[-20:])
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
    assert re.search(r"generator-\d is lost: ", "".join(said))
    check_finished(place, "shot", starts=1)
    stamped = {int(v) for e in place.events("shot") if isinstance(e, TokensSampled) for v in e.versions}
    assert stamped <= set(range(STEPS + 1))
    assert len(stamped) > STEPS // 2, "versions are the servers' own"

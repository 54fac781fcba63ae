"""What a submission sends: the command of the job and the files it needs, without a cluster."""

from pathlib import Path

import pytest

from actors.ray_submit import Job
from engine.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "configs" / "demo.toml"


def test_a_layer_of_the_checkout_goes_along_and_a_shipped_one_is_there_already() -> None:
    own = str(ROOT / "configs" / "algorithms" / "gspo.toml")
    job = Job(DEMO, ["algorithms/dapo.toml", own, "run.dir=/shared"], python="python", wheel=None)
    words = "algorithms/dapo.toml configs/algorithms/gspo.toml run.dir=/shared runtime.backend=ray"
    assert job.entrypoint == f"python -m actors.cli train configs/demo.toml {words}"


def test_a_layer_outside_of_what_is_sent_is_refused(tmp_path: Path) -> None:
    layer = tmp_path / "mine.toml"
    layer.write_text("[train]\nsteps = 3\n")
    with pytest.raises(ConfigError, match=r"mine\.toml: a configuration lies in the checkout that is sent"):
        Job(DEMO, [str(layer)], python="python", wheel=None)


def test_beside_a_wheel_only_the_configuration_and_its_layers_are_sent(tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    for name in ("run.toml", "other.toml", "layers/mine.toml"):
        (tmp_path / name).write_text(DEMO.read_text())
    wheel = tmp_path / "arpo.whl"
    wheel.touch()
    layer = str(tmp_path / "layers" / "mine.toml")
    job = Job(tmp_path / "run.toml", [layer, "run.dir=/shared"], python="python", wheel=wheel)
    assert job.runtime_env["excludes"] == ["*", "!layers", "!layers/mine.toml", "!run.toml"]
    assert job.entrypoint.startswith("python -m actors.cli train run.toml layers/mine.toml run.dir=/shared ")

"""The shipped configurations: every file is decoded, and a mistake in one is named by the path of its key."""

from pathlib import Path

import msgspec
import pytest

from actors.config import Config
from engine.config import decode, differences, load, to_json
from engine.errors import ConfigError
from engine.rollout_config import RolloutConfig

FOLDER = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(FOLDER.rglob("*.toml"))


def test_there_are_configurations_and_nothing_but_data_beside_them() -> None:
    assert len(FILES) >= 2
    code = [path.name for path in FOLDER.rglob("*.py")]
    assert set(code) <= {"__init__.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_decoded(path: Path) -> None:
    config = load(path, Config)
    assert isinstance(config.rollout, RolloutConfig)
    assert config.rollout.branching.initial <= config.rollout.size
    # What a run writes down is read back as the same configuration.
    written = msgspec.json.decode(to_json(config))
    assert differences(decode(written, Config, source="config.json"), config) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lrr=1", r"unknown field `lrr` - at `\$\.learner`"),
        ("rollout.branching.taux=1", r"unknown field `taux` - at `\$\.rollout\.branching`"),
        ("train.batch_size=0", r"Expected `int` >= 1 - at `\$\.train\.batch_size`"),
        ("rollout.sampling.top_p=1.5", r"Expected `float` <= 1.0 - at `\$\.rollout\.sampling\.top_p`"),
        ("rollout.branching.kind=arpoo", r"Invalid value 'arpoo' - at `\$\.rollout\.branching\.kind`"),
        ("model.kind=7", r"at `\$\.model\.kind`"),
        ("tools.reward.kind=best", r"Invalid enum value 'best' - at `\$\.tools\.reward\.kind`"),
    ],
)
def test_an_unknown_key_or_a_bad_value_is_refused_by_its_path(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(path, Config, overrides=[override])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)

"""The shipped configurations: every file is decoded, and a mistake in one is named by the path of its key."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from actors.config import Config
from actors.credit import credit
from engine.config import decode, differences, load, to_json
from engine.errors import ConfigError
from engine.rollout_config import RolloutConfig
from learner.config import ArpoSoft, Decoupled, Gspo, TruncatedIs
from tests.credit_trees import DONE, P, S, group, node

FOLDER = Path(__file__).resolve().parent.parent / "configs"
PRESETS = sorted((FOLDER / "algorithms").glob("*.toml"))
"""Laid over a whole configuration; none by themselves."""
LAYERS = [*PRESETS, FOLDER / "recipes" / "cold_start.toml"]
FOLDERS = ("bench", "cluster", "evaluation", "models")
LAYERS += [path for name in FOLDERS for path in sorted((FOLDER / name).glob("*.toml"))]
"""These, and those of the recipes: `test_recipes`."""
FILES = sorted(set(FOLDER.rglob("*.toml")) - set(LAYERS))


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


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_preset_can_be_laid_over_every_shipped_configuration(path: Path, preset: Path) -> None:
    config = Config.load(path, f"algorithms/{preset.name}", "run.name=laid-over")
    said = tomllib.loads(preset.read_text())
    written = msgspec.json.decode(to_json(config))
    for key, value in said["learner"].items():
        found = written["learner"][key]
        assert found.items() >= value.items() if isinstance(value, dict) else found == value, key
    assert differences(decode(written, Config, source="config.json"), config) == []


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_says_what_its_algorithm_is_and_nothing_else(preset: Path) -> None:
    said = tomllib.loads(preset.read_text())
    assert set(said) <= {"learner", "rollout"}
    assert set(said.get("rollout", {})) <= {"branching", "granting", "grow", "supplements"}
    algorithm = {"advantage", "overlong", "loss", "kl", "entropy_coef", "correction", "rejections", "normalisation"}
    assert set(said["learner"]) <= algorithm | {"leaf_weighting"}
    assert preset.read_text().startswith("# ")


def test_servers_of_others_are_asked_by_the_controller_alone() -> None:
    urls = ["generator={kind='sglang', urls=['http://10.0.0.7:30000']}", "runtime.backend=ray"]
    with pytest.raises(ConfigError, match=r"urls set it to 0 - at \$\.runtime\.ray\.num_rollout_actors"):
        Config.load(FOLDER / "demo.toml", *urls)
    assert Config.load(FOLDER / "demo.toml", *urls, "runtime.ray.num_rollout_actors=0").has_urls


def test_presets_add_up_from_left_to_right() -> None:
    config = Config.load(
        FOLDER / "demo.toml", "algorithms/gspo.toml", "algorithms/tis_sequence.toml", "learner.correction.cap=3"
    )
    assert config.learner.loss == Gspo()
    assert config.learner.correction == TruncatedIs(level="sequence", cap=3.0)
    assert config.learner.advantage == ArpoSoft()
    assert config.learner.lr == 5e-4
    decoupled = Config.load(FOLDER / "demo.toml", "algorithms/tis_sequence.toml", "algorithms/decoupled.toml")
    assert decoupled.learner.correction == Decoupled()


def test_a_preset_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"algorithms/dpo\.toml: no such .*algorithms/aepo\.toml, .*tree_grpo\.toml"):
        Config.load(FOLDER / "demo.toml", "algorithms/dpo.toml")


def test_a_response_limit_of_a_penalty_is_that_of_the_run() -> None:
    config = Config.load(FOLDER / "demo.toml", "algorithms/dapo.toml", "rollout.sampling.max_response_tokens=10")
    nodes = [node(-1, P, 1), node(0, S, 10), node(0, S, 9), node(0, S, 2)]
    sample = credit(group(nodes, [(1, 1.0, DONE), (2, 1.0, DONE), (3, 0.0, DONE)]), config)
    # rewards of 0, 0.5 and 0: the longest loses all of its reward, the next one half
    assert sample is not None
    assert [round(float(a[-1]), 3) for a in sample.advantages] == [-0.577, 1.155, -0.577]

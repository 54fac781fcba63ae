"""Configuration: what is wrong is named by file, key and value; what is right is typed and frozen."""

import tomllib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from engine import config
from engine.config import Fraction, Positive, PositiveFloat, Section
from engine.errors import ConfigError


class Learner(Section):
    lr: PositiveFloat = 1e-6
    clip: Fraction = 0.2


class Run(Section):
    name: str = ""
    seed: int = 0
    stop: tuple[str, ...] = ()
    limit: Positive | None = None

    def __post_init__(self) -> None:
        if self.name.startswith("-"):
            raise ConfigError(f"a name cannot begin with a dash, got {self.name!r}")


class Whole(Section):
    run: Run = Run()
    learner: Learner = Learner()
    stages: tuple[Learner, ...] = ()


def loaded(tmp_path: Path, text: str, *overrides: str) -> Whole:
    (tmp_path / "demo.toml").write_text(text)
    return config.load(tmp_path / "demo.toml", Whole, overrides=list(overrides))


def overridden(*overrides: str) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for override in overrides:
        config.apply_override(raw, override)
    return raw


def test_a_file_is_read_with_defaults_and_overrides(tmp_path: Path) -> None:
    whole = loaded(tmp_path, "[run]\nname = 'first'\nseed = 1", "run.seed=2", "learner.lr=1e-5")
    assert whole == Whole(run=Run(name="first", seed=2), learner=Learner(lr=1e-5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nnmae = 'x'", "unknown field `nmae` - at `$.run`"),
        ("[runs]", "unknown field `runs`"),
        ("[learner]\nlr = 0", "Expected `float` > 0.0 - at `$.learner.lr`"),
        ("[learner]\nclip = 1.5", "Expected `float` <= 1.0 - at `$.learner.clip`"),
        ("[run]\nlimit = 0", "Expected `int` >= 1 - at `$.run.limit`"),
        ("[run]\nname = '-x'", "a name cannot begin with a dash, got '-x' - at `$.run`"),
        ("[run\n", "at line 1"),
    ],
)
def test_a_mistake_is_named_by_file_and_key_on_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'demo.toml'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such configuration file"):
        config.load(tmp_path / "absent.toml", Whole)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.sed=1", "unknown field `sed` - at `$.run`"),
        ("run.seed=many", "Expected `int`, got `str` - at `$.run.seed`"),
        ("run.stop=[1", "Expected `array`, got `str` - at `$.run.stop`"),
        ("learner.lr=-1", "Expected `float` > 0.0 - at `$.learner.lr`"),
        ("run=1", "Expected `object`, got `int` - at `$.run`"),
    ],
)
def test_an_override_with_a_wrong_key_or_value_is_named_by_its_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "", override)
    assert message in str(caught.value)


@pytest.mark.parametrize("override", ["run.seed", "=1", "run..seed=1", ".seed=1", "", "run.=1"])
def test_an_override_without_a_key_or_an_equals_sign_is_quoted(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a\.b=value") as caught:
        overridden(override)
    assert repr(override) in str(caught.value)


def test_an_override_cannot_reach_into_a_value() -> None:
    with pytest.raises(ConfigError, match=r"run\.seed is a value, not a section"):
        overridden("run.seed=1", "run.seed.low=2")


def test_a_number_names_an_element_of_an_array(tmp_path: Path) -> None:
    text = "[[stages]]\nlr = 1e-3\n[[stages]]\n"
    whole = loaded(tmp_path, text, "stages.1.lr=1e-4", "stages.0.clip=0.5", "stages.0.lr=")
    assert whole.stages == (Learner(clip=0.5), Learner(lr=1e-4))
    # What the second element is told says nothing to the first.
    assert loaded(tmp_path, text, "stages.1.clip=0.9").stages == (Learner(lr=1e-3), Learner(clip=0.9))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.2.lr=1", "'2' is none of the 2 places of an array"),
        ("stages.-1.lr=1", "'-1' is none of the 2 places of an array"),
        ("stages.lr=1", "'lr' is none of the 2 places of an array"),
        ("stages.first.lr=1", "'first' is none of the 2 places of an array"),
        ("stages.0=1", "stages.0 is a value, not a section"),
        ("stages.0.lr.high=1", "stages.0.lr is a value, not a section"),
        ("run.stop.0.x=1", "run.stop.0 is a value, not a section"),
    ],
)
def test_an_override_cannot_reach_past_an_array(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "[run]\nstop = ['a']\n[[stages]]\nlr = 1e-3\n[[stages]]\n", override)
    assert str(caught.value).endswith(f"override {override!r}: {message}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        ("1e-6", 1e-6),
        ("true", True),
        ("'16'", "16"),
        ('["a", "b"]', ["a", "b"]),
        ("{ a = 1 }", {"a": 1}),
        ("first", "first"),
        ("models/tiny v2", "models/tiny v2"),
        ("a=b", "a=b"),
        ("2026-99-99", "2026-99-99"),
    ],
)
def test_a_value_is_toml_and_a_bare_word_is_a_string(text: str, value: object) -> None:
    assert overridden(f"run.key={text}") == {"run": {"key": value}}


def test_nothing_behind_the_equals_sign_unsets_the_key(tmp_path: Path) -> None:
    whole = loaded(tmp_path, "[run]\nlimit = 3\nseed = 5", "run.limit=", "run.seed= ", "run.name=")
    assert whole == Whole()


@given(
    path=st.lists(st.from_regex(r"[a-z_]{1,4}", fullmatch=True), min_size=1, max_size=4),
    value=st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_an_override_says_what_the_same_line_in_a_file_says(path: list[str], value: Any) -> None:
    line = f"{'.'.join(path)}={str(value).lower()}"
    assert overridden(line) == tomllib.loads(line)


def test_numbers_written_as_text_are_numbers(tmp_path: Path) -> None:
    assert loaded(tmp_path, "[learner]\nlr = '1e-6'").learner.lr == 1e-6


def test_sections_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Whole().run.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_resolved_configuration_reads_back_with_its_defaults() -> None:
    whole = Whole(run=Run(name="first", limit=3))
    text = config.to_json(whole)
    assert msgspec.json.decode(text, type=Whole) == whole
    assert b'"lr": ' in text


def test_the_digest_is_of_the_resolved_configuration(tmp_path: Path) -> None:
    written_out = loaded(tmp_path, "[learner]\nlr = 1e-6\n[run]\nseed = 0")
    assert config.digest(written_out) == config.digest(Whole())
    assert config.digest(Whole(run=Run(seed=1))) != config.digest(Whole())


def test_differences_are_named_key_by_key() -> None:
    other = Whole(run=Run(name="x", stop=("a",)), learner=Learner(clip=0.3))
    assert config.differences(Whole(), other) == ["learner.clip", "run.name", "run.stop"]
    assert config.differences(other, other) == []


def test_differences_in_an_array_are_named_by_their_place() -> None:
    one, other = (Whole(stages=(Learner(), Learner(clip=clip))) for clip in (0.2, 0.3))
    assert config.differences(one, other) == ["stages.1.clip"]
    assert config.differences(one, Whole()) == ["stages.0", "stages.1"]

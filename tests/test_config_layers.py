"""Files laid over one another: what wins, what replaces what, and which file a mistake is in."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import config
from engine.config import PositiveFloat, Section
from engine.config_layers import is_file, overlaid
from engine.errors import ConfigError


class Ppo(Section, tag="ppo", tag_field="kind"):
    eps: PositiveFloat = 0.2
    dual_clip: PositiveFloat = 3.0


class Gspo(Section, tag="gspo", tag_field="kind"):
    eps: PositiveFloat = 3e-4


class Whole(Section):
    loss: Ppo | Gspo = Ppo()
    stages: tuple[Ppo, ...] = ()
    lr: PositiveFloat = 1.0


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_layers_and_overrides_apply_in_their_order(write: Any) -> None:
    base = write("base.toml", "lr = 2.0\n[loss]\nkind = 'ppo'\ndual_clip = 5.0")
    layer = write("layer.toml", "lr = 3.0\n[loss]\nkind = 'ppo'\neps = 0.1")
    assert config.load(base, Whole, overrides=[layer]) == Whole(lr=3.0, loss=Ppo(eps=0.1, dual_clip=5.0))
    assert config.load(base, Whole, overrides=["lr=4.0", layer]).lr == 3.0
    assert config.load(base, Whole, overrides=[layer, "lr=4.0"]).lr == 4.0


def test_another_kind_replaces_the_whole_section(write: Any) -> None:
    base = write("base.toml", "[loss]\nkind = 'ppo'\ndual_clip = 5.0")
    layer = write("layer.toml", "[loss]\nkind = 'gspo'")
    assert config.load(base, Whole, overrides=[layer]).loss == Gspo()


def test_an_array_is_replaced_not_added_to(write: Any) -> None:
    base = write("base.toml", "stages = [{ kind = 'ppo' }, { kind = 'ppo' }]")
    layer = write("layer.toml", "stages = [{ kind = 'ppo', eps = 0.5 }]")
    assert config.load(base, Whole, overrides=[layer]).stages == (Ppo(eps=0.5),)


def test_a_mistake_is_named_by_the_file_that_brought_it_in(write: Any) -> None:
    base, good = write("base.toml", "lr = 2.0"), write("good.toml", "[loss]\nkind = 'gspo'")
    bad = write("bad.toml", "[loss]\nkind = 'gspo'\neps = -1.0")
    for overrides in ([bad], [good, bad], [bad, good], [good, bad, "lr=3.0"]):
        with pytest.raises(ConfigError) as caught:
            config.load(base, Whole, overrides=overrides)
        assert str(caught.value) == f"{bad}: Expected `float` > 0.0 - at `$.loss.eps`"
    for overrides in (["lr=-1"], [good, "lr=-1"]):
        with pytest.raises(ConfigError) as caught:
            config.load(base, Whole, overrides=overrides)
        assert str(caught.value) == f"{base}: Expected `float` > 0.0 - at `$.lr`"
    # what a later layer puts right is no mistake
    assert config.load(base, Whole, overrides=["lr=-1", write("right.toml", "lr = 1.0")]).lr == 1.0


def test_a_layer_is_looked_for_among_the_shipped_ones(write: Any, tmp_path: Path) -> None:
    base = write("base.toml", "")
    write("shipped/fast.toml", "lr = 9.0")
    write("shipped/slow.toml", "lr = 0.1")
    assert config.load(base, Whole, overrides=["fast.toml"], shipped=tmp_path / "shipped").lr == 9.0
    with pytest.raises(ConfigError, match=r"^fest\.toml: no such .* file; shipped are fast\.toml, slow\.toml$"):
        config.load(base, Whole, overrides=["fest.toml"], shipped=tmp_path / "shipped")
    with pytest.raises(ConfigError, match=r"^fast\.toml: no such configuration file$"):
        config.load(base, Whole, overrides=["fast.toml"])


def test_a_layer_that_is_not_toml_is_named(write: Any) -> None:
    with pytest.raises(ConfigError, match=r"torn\.toml: .*at line 1"):
        config.load(write("base.toml", ""), Whole, overrides=[write("torn.toml", "[loss\n")])


def test_a_key_is_told_from_a_file() -> None:
    assert is_file("algorithms/dapo.toml")
    assert not is_file("data.path=world.toml")
    assert not is_file("lr=1")


names = st.sampled_from(["a", "b", "c"])
tables = st.recursive(
    st.dictionaries(names, st.integers(0, 3), max_size=3),
    lambda inner: st.dictionaries(names, st.integers(0, 3) | inner, max_size=3),
)


@given(tables, tables, tables)
def test_laying_over_is_associative_and_changes_nothing_it_is_given(
    one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]
) -> None:
    before = copy.deepcopy((one, two, three))
    assert overlaid(overlaid(one, two), three) == overlaid(one, overlaid(two, three))
    assert overlaid(one, {}) == one
    assert overlaid({}, one) == one
    assert overlaid(one, one) == one
    assert (one, two, three) == before

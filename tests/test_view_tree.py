"""The document of one tree: every token once, at its place and time, and why each fork was granted."""

from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest

from actors.config import Config, TinyModel
from actors.run_dir import RunDir
from actors.view.run_view import RunView
from actors.view.texts import Texts, texts_of
from actors.view.tree_document import TreeDocument, tree_document
from engine.dataset import DataConfig
from engine.events import AnyEvent, Forked, Rewarded, TokensSampled, ToolFinished, TreeEvent
from engine.tree import TreeBuilder
from engine.types import NodeKind
from learner.algorithms.advantage import estimate
from learner.config import ArpoSoft, LearnerConfig
from tests.report_runs import Story, text_of
from tests.view_runs import Grower, a_config, make_run, texts, whole_run


def grown(*, seed: int = 3, num_paths: int = 8, is_whole: bool = True) -> list[AnyEvent]:
    grower = Grower(Random(seed))
    grower.tree("e0-r1", t=10.0, num_paths=num_paths, is_whole=is_whole)
    return grower.ordered()


def document(events: list[AnyEvent], *, config: Config | None = None) -> TreeDocument:
    tree = [event for event in events if isinstance(event, TreeEvent)]
    return tree_document(tree, config=config or a_config(), texts=texts())  # pyright: ignore[reportArgumentType]


def built(events: list[AnyEvent]) -> TreeBuilder:
    builder = TreeBuilder(events[0].prompt)  # pyright: ignore[reportAttributeAccessIssue]
    for event in events:
        builder.apply(event)  # pyright: ignore[reportArgumentType]
    return builder


def test_it_has_every_sampled_token_once_with_its_numbers() -> None:
    events = grown()
    doc, group = document(events), built(events).group()
    sampled = [node for node in group.tree.nodes if node.kind is NodeKind.SAMPLED]
    assert doc.tokens["version"] == [v for node in sampled for v in node.versions.tolist()]
    assert doc.tokens["entropy"] == pytest.approx([h for node in sampled for h in node.entropies.tolist()], abs=6e-4)
    assert doc.tokens["logprob"] == pytest.approx([p for node in sampled for p in node.logprobs.tolist()], abs=6e-4)
    assert len(doc.tokens["text"]) == sum(event.token_ids.size for event in events if isinstance(event, TokensSampled))
    assert [size for size, kind in zip(doc.nodes["size"], doc.nodes["kind"], strict=True) if kind == "s"] == [
        node.token_ids.size for node in sampled
    ]


def test_the_texts_of_a_path_are_its_text() -> None:
    story = Story("a").start(0).write(0, "look: ").call(0, "search", text="[found]").write(0, " é ok").end(0, 1.0)
    doc = tree_document(story.finish(), config=None, texts=Texts(text_of))  # pyright: ignore[reportArgumentType]
    assert "".join(doc.tokens["text"]) == "look:  é ok"
    assert [text for text in doc.nodes["text"] if text] == ["[found]"]
    assert doc.prompt == "Q:"


def test_positions_and_times_never_run_backwards_on_the_way_to_a_leaf() -> None:
    doc = document(grown())
    for node in range(1, len(doc.nodes["parent"])):
        parent = doc.nodes["parent"][node]
        assert doc.nodes["start"][node] == doc.nodes["start"][parent] + doc.nodes["size"][parent]
        assert doc.nodes["t0"][node] <= doc.nodes["t1"][node]
        if parent:
            assert doc.nodes["t0"][node] >= doc.nodes["t0"][parent]


def test_a_result_takes_as_long_as_its_call() -> None:
    events = grown()
    doc = document(events)
    calls = {(call["path"], call["length"]): call for call in doc.calls}
    assert len(calls) == sum(isinstance(event, ToolFinished) for event in events)
    for node, kind in enumerate(doc.nodes["kind"]):
        if kind == "o":
            call = calls[doc.nodes["path"][node], doc.nodes["start"][node]]
            assert doc.nodes["t1"][node] - doc.nodes["t0"][node] == pytest.approx(call["duration_s"], abs=3e-4)


def test_every_branch_is_explained_by_the_look_that_granted_it() -> None:
    events = grown()
    doc = document(events)
    granted = {child: look for look in doc.looks for child in look["children"]}
    branches = [event for event in events if isinstance(event, Forked)]
    assert branches
    for event in branches:
        look = granted[event.child]
        assert (look["fate"], look["path"], look["length"]) == ("granted", event.path, event.length)
        assert (look["entropy"], look["baseline"], look["score"]) == (1.0, 0.4, 0.62)
    assert {look["fate"] for look in doc.looks} == {"granted", "waiting", "declined"}


def test_advantages_are_those_of_the_run() -> None:
    events = grown()
    config = Config(model=TinyModel(), data=DataConfig(path="world:train"), learner=LearnerConfig(advantage=ArpoSoft()))
    doc, group = document(events, config=config), built(events).group()
    sample = estimate(group, ArpoSoft())
    assert sample is not None
    assert len({event.reward.score for event in events if isinstance(event, Rewarded)}) == 2
    for path, given in zip(doc.paths, sample.advantages, strict=True):
        assert path["advantage"] == pytest.approx(float(given[np.flatnonzero(given)][-1]), abs=1e-4)


def test_a_tree_that_still_grows_is_shown_as_far_as_it_came() -> None:
    doc = document(grown(is_whole=False))
    assert doc.is_growing
    assert doc.paths[0]["status"] == "growing"
    assert doc.paths[0]["t1"] is None
    assert all(advantage is None for advantage in doc.nodes["advantage"])


def test_a_tree_is_read_again_from_where_its_events_lie(tmp_path: Path) -> None:
    events = whole_run(num_steps=3, num_groups=3)
    view = RunView(make_run(tmp_path / "run", events), texts=texts())
    view.refresh_all()
    for row in view.fold.rows:
        doc = view.document(row.id)
        assert doc is not None
        of_it = [event for event in events if isinstance(event, TreeEvent) and event.prompt_id == row.id]
        assert msgspec.json.encode(doc) == msgspec.json.encode(document(of_it, config=view.config))
    assert view.document("e9-r9") is None


def test_a_run_whose_model_is_gone_is_shown_in_token_ids_and_says_so(tmp_path: Path) -> None:
    config = Config.load(Path("configs/demo.toml"), "model=", "model.kind=hf", f"model.path={tmp_path / 'gone'}")
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.write_config(config)
    found = texts_of(run)
    assert found.note.startswith("token ids in place of texts: ")
    assert found.decode(np.array([5, 17], np.int32)) == "⟨5⟩⟨17⟩"

"""A replay trains what the journal says once more, finds the same, and says what is not."""

import json
from pathlib import Path

import pytest

from engine import journal
from engine.events import AnyEvent, BatchTaken
from engine.journal import Journal
from tests.test_resume import Place

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("replay"))
    place.finish("whole")
    place.finish("short", 'journal.retain="checkpoint"', "train.steps=12")
    return place


def test_a_replay_of_an_asynchronous_run_is_the_same_bit_for_bit(place: Place) -> None:
    said = place.command("replay", "runs/whole")
    assert "steps 1 to 12 and 2 checkpoints are the same, bit for bit" in said
    assert " 12/12" in said, "progress while it runs"


def test_a_replay_may_end_early_and_begins_where_the_journal_does(place: Place) -> None:
    assert "steps 1 to 5 and 0 checkpoints are the same" in place.command("replay", "runs/whole", "--until", "5")
    said = place.command("replay", "runs/short")
    assert "the journal goes back to step 9, where the replay began" in said
    assert "steps 9 to 12 and 1 checkpoints are the same" in said


def test_a_batch_that_is_not_the_one_that_was_trained_is_found(place: Place) -> None:
    folder = place.path / "runs" / "whole" / "journal"
    events = list(journal.read(folder))
    (place.path / "runs" / "other").mkdir()
    (place.path / "runs" / "other" / "config.json").write_bytes((folder.parent / "config.json").read_bytes())
    with Journal(place.path / "runs" / "other" / "journal") as file:
        for event in events:
            file.append(swapped(event))
    said = place.command("replay", "runs/other", code=3)
    assert "step 3: its batch has the digest " in said
    assert "step 4" not in said


def swapped(event: AnyEvent) -> AnyEvent:
    """Step 3 takes its groups in the other order."""
    if isinstance(event, BatchTaken) and event.step == 3:
        return BatchTaken(step=3, prompt_ids=event.prompt_ids[::-1], digest=event.digest)
    return event


def test_parameters_that_are_not_those_of_a_checkpoint_are_found(place: Place) -> None:
    manifest = place.path / "runs" / "short" / "checkpoints" / "step-000012" / "manifest.json"
    before = manifest.read_text()
    said = json.loads(before)
    said["files"][0]["digest"] = "0" * 32
    manifest.write_text(json.dumps(said))
    try:
        assert "step 12: the parameters are not those in " in place.command("replay", "runs/short", code=3)
    finally:
        manifest.write_text(before)


def test_a_batch_can_be_looked_at(place: Place) -> None:
    lines = [json.loads(line) for line in place.command("replay", "runs/whole", "--dump-batch", "2").splitlines()]
    (taken,) = (
        e for e in journal.read(place.path / "runs" / "whole" / "journal") if isinstance(e, BatchTaken) and e.step == 2
    )
    assert sorted({line["prompt_id"] for line in lines}) == sorted(taken.prompt_ids)
    assert all(len(line["advantages"]) == len(line["token_ids"]) for line in lines)
    assert "no batch of step 99, the last one is 12" in place.command(
        "replay", "runs/whole", "--dump-batch", "99", code=2
    )


def test_a_folder_that_is_no_run_is_bad_input(place: Place, tmp_path: Path) -> None:
    assert "no run there" in place.command("replay", str(tmp_path), code=2)

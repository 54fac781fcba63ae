"""Calls that were under way when a process was killed: run again once, never a third time, under the same budget."""

from collections import Counter
from pathlib import Path

import pytest

from engine.events import AnyEvent, ToolFinished, ToolRequested, ToolRerun
from engine.path import INTERRUPTED
from engine.rollout_config import BudgetConfig
from engine.tokenizer import HfTokenizer
from engine.train_config import TrainConfig
from tests.control_world import World, revived, small, words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return words(tmp_path_factory.mktemp("words"))


Call = tuple[str, int, int]


def calls(events: list[AnyEvent], kind: type) -> list[Call]:
    return [(e.prompt_id, e.path, e.index) for e in events if isinstance(e, kind)]


def test_a_call_that_was_under_way_is_run_again_once_and_then_given_up(tokenizer: HfTokenizer, tmp_path: Path) -> None:
    budget = BudgetConfig(calls_per_path=4, calls_per_run=60)

    def world(events: list[AnyEvent], **more: object) -> World:
        train = TrainConfig(batch_size=4, max_staleness=1)
        return World(tokenizer, train=train, rollout=small(budget=budget), events=events, latency_s=3.0, **more)

    first = world([])
    events = first.kill_at(2.5)
    lost = set(calls(events, ToolRequested)) - set(calls(events, ToolFinished))
    assert lost
    second = world(events, trainer=revived(first.trainer))
    events = second.kill_at(2.5)
    assert set(calls(events, ToolRerun)) == lost, "what was under way, and nothing else"
    lost_twice = lost - set(calls(events, ToolFinished))
    assert lost_twice
    third = world(events, trainer=revived(second.trainer)).run()

    assert max(Counter(calls(third.events, ToolRequested)).values()) == 1
    assert max(Counter(calls(third.events, ToolRerun)).values()) == 1
    assert max(Counter(calls(third.events, ToolFinished)).values()) == 1
    given_up = {
        (e.prompt_id, e.path, e.index)
        for e in third.events
        if isinstance(e, ToolFinished) and e.result.text == INTERRUPTED
    }
    assert given_up
    assert given_up <= lost_twice, "but for those that no budget is left for"
    executed = sum(e.result.was_executed for e in third.events if isinstance(e, ToolFinished))
    assert executed == 60, "a lost call's place under the budget is taken by the one that replaces it"

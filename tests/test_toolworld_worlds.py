"""Villages, pages and chains as values: what is unique, what is shared, and how hard it is to read."""

import itertools
from collections import Counter
from collections.abc import Iterator
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tools.toolworld_traces import Question, drill, questions_of
from tools.toolworld_world import (
    NUM_ORGANISATION_NAMES,
    NUM_PERSON_NAMES,
    PAIRS,
    YEARS,
    Crowd,
    Page,
    Sentence,
    World,
    make_worlds,
)

RELATIONS = [relations for kinds in PAIRS.values() for relations, _ in kinds]
YEAR_RELATIONS = {name for kinds in PAIRS.values() for relations, kind in kinds if kind == "year" for name in relations}


def worlds_of(
    count: int, *, seed: int = 0, crowded: float = 1.0, rivals: int = 1, alike: float = 0.0
) -> Iterator[World]:
    return make_worlds(count, seed=seed, crowd=Crowd(crowded, rivals, alike))


def world_of(*, seed: int = 0, crowded: float = 1.0, rivals: int = 1, alike: float = 0.0) -> World:
    return next(worlds_of(1, seed=seed, crowded=crowded, rivals=rivals, alike=alike))


def told(world: World, text: str) -> list[Sentence]:
    """The facts of a text, in its order."""
    facts = {fact.text: fact for fact in world.facts}
    return [facts[f"{sentence} ."] for sentence in text.removesuffix(" .").split(" . ")]


def owner(page: Page) -> str:
    return page.title.partition(", ")[2].partition(":")[0]


# -- worlds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 40, 300])
def test_no_two_worlds_are_in_one_place_in_either_order_of_its_words(count: int) -> None:
    worlds = list(worlds_of(count, seed=3))
    places = [frozenset(world.place.split()) for world in worlds]
    assert {len(place) for place in places} == {2}
    assert len(set(places)) == len(places) == count
    # As few words as make enough pairs: a place is known by both of them only.
    num_words = len({word for place in places for word in place})
    assert num_words == 2 or (num_words - 1) * (num_words - 2) // 2 < count


def test_names_are_single_words_that_worlds_share_and_places_do_not() -> None:
    worlds = list(worlds_of(60, seed=3))
    persons = [name for world in worlds for name in world.persons]
    organisations = {fact.subject for world in worlds for fact in world.facts} - set(persons)
    place_words = {word for world in worlds for word in world.place.split()}
    assert (len(set(persons)), len(organisations)) == (NUM_PERSON_NAMES, NUM_ORGANISATION_NAMES)
    assert min(Counter(persons).values()) > 1, "everybody lives in several places"
    names = {*persons, *organisations}
    assert all(len(name.split()) == 1 for name in names)
    assert not names & place_words
    assert names != {fact.subject for world in worlds_of(60, seed=4) for fact in world.facts}
    assert "Page" not in names | place_words, "the word that stands before a result"
    # The same name, the same relation, another place: another fact.
    objects: dict[tuple[str, str], set[str]] = {}
    for fact in (fact for world in worlds for fact in world.facts):
        objects.setdefault((fact.subject, fact.relation), set()).add(fact.object)
    assert min(len(found) for found in objects.values()) > 1


def test_a_world_has_one_fact_for_each_subject_and_relation() -> None:
    for world in worlds_of(10, seed=0, crowded=0.5, rivals=1):
        keys = [(fact.subject, fact.relation) for fact in world.facts]
        assert len(set(keys)) == len(keys) == 58
        assert Counter(Counter(subject for subject, _ in keys).values()) == {6: 7, 4: 4}
        for fact in world.facts:
            assert world.fact(fact.subject, fact.relation) is fact
            assert world.query(fact.subject, fact.relation) == f"{world.place} : {fact.relation} of {fact.subject}"
            assert fact.text.split() == ["the", fact.relation, "of", fact.subject, "is", fact.object, "."]


def test_a_pair_of_relations_never_has_one_object() -> None:
    for world in worlds_of(20):
        for subject, (one, other) in itertools.product({fact.subject for fact in world.facts}, RELATIONS):
            objects = [f.object for f in world.facts if f.subject == subject and f.relation in (one, other)]
            assert len(set(objects)) == len(objects)
            assert subject not in objects


def test_years_of_a_pair_are_in_order() -> None:
    for world in worlds_of(5):
        for first, last in (("birthyear", "hireyear"), ("openyear", "closeyear")):
            years = {f.subject: int(f.object) for f in world.facts if f.relation == first}
            assert all(years[f.subject] < int(f.object) for f in world.facts if f.relation == last)
            assert set(years.values()) <= set(YEARS)


# -- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alike", [0.0, 1.0])
@pytest.mark.parametrize("rivals", [0, 1, 2, 3])
def test_a_crowded_page_holds_a_pair_of_facts_and_its_rivals_in_any_order(rivals: int, alike: float) -> None:
    places: set[int] = set()
    for world in worlds_of(8, rivals=rivals, alike=alike):
        assert len(world.pages) == 7 * 3 + 4 * 2
        for page in world.pages:
            facts = told(world, page.text)
            own = [fact for fact in facts if fact.subject == owner(page)]
            others = [fact for fact in facts if fact not in own]
            assert (len(own), len(others)) == (2, rivals)
            assert tuple(sorted(f.relation for f in own)) in {tuple(sorted(pair)) for pair in RELATIONS}
            for fact in others:
                assert (fact.relation in {f.relation for f in own}) == (alike == 1.0)
            assert len({fact.subject for fact in others}) == rivals
            assert page.title.startswith(f"{world.place}, {owner(page)}: ")
            assert page.title.endswith(f" of {owner(page)} of {world.place}")
            assert {fact.relation for fact in own} <= set(page.title.split())
            places |= {index for index, fact in enumerate(facts) if fact in own}
    assert places == set(range(2 + rivals))


def test_alike_is_the_share_of_rivals_that_only_a_name_tells_apart() -> None:
    num_alike = num_rivals = 0
    for world in worlds_of(20, rivals=2, alike=0.3):
        for page in world.pages:
            facts = told(world, page.text)
            relations = {fact.relation for fact in facts if fact.subject == owner(page)}
            others = [fact for fact in facts if fact.subject != owner(page)]
            num_rivals += len(others)
            num_alike += sum(fact.relation in relations for fact in others)
    assert num_alike / num_rivals == pytest.approx(0.3, abs=0.05)


@given(seed=st.integers(0, 10_000), alike=st.sampled_from([0.0, 1.0]))
@settings(max_examples=20)
def test_a_rival_shares_no_name_with_its_page_wherever_that_can_be(seed: int, alike: float) -> None:
    world = world_of(seed=seed, alike=alike)
    for page in world.pages:
        facts = told(world, page.text)
        own = [fact for fact in facts if fact.subject == owner(page)]
        (rival,) = (fact for fact in facts if fact not in own)
        relations, named = {fact.relation for fact in own}, {name for f in own for name in (f.subject, f.object)}
        possible = [f for f in world.facts if (f.relation in relations) == bool(alike) and f.subject != owner(page)]
        if any(not {fact.subject, fact.object} & named for fact in possible):
            assert not {rival.subject, rival.object} & named


def test_an_uncrowded_page_holds_one_fact() -> None:
    world = world_of(crowded=0.0, rivals=3)
    assert sorted(page.text for page in world.pages) == sorted(fact.text for fact in world.facts)


@pytest.mark.parametrize("crowded", [0.0, 0.5, 1.0])
def test_the_page_of_a_fact_is_about_its_subject_and_tells_it(crowded: float) -> None:
    for world in worlds_of(5, crowded=crowded, rivals=3, alike=0.5):
        for fact in world.facts:
            page = world.page(fact)
            assert page.subject == owner(page) == fact.subject
            assert fact in told(world, page.text)
            assert fact.relation in page.title.split()


def test_crowded_is_the_share_of_pairs_that_confuse() -> None:
    worlds = list(worlds_of(40, seed=0, crowded=0.7, rivals=1))
    num_crowded = sum(len(told(world, page.text)) > 1 for world in worlds for page in world.pages)
    assert num_crowded / (len(worlds) * (7 * 3 + 4 * 2)) == pytest.approx(0.7, abs=0.04)


# -- questions --------------------------------------------------------------------------------------------------------


def asked(world: World, *, hops: tuple[float, ...], count: int = 20, plus: float = 0.0) -> list[Question]:
    return questions_of(world, count=count, hops=hops, plus=plus, rng=Random(0))


@pytest.mark.parametrize(("hops", "length"), [((1.0,), 2), ((0.0, 1.0), 3), ((0.0, 0.0, 1.0), 4)])
def test_a_weight_says_how_long_chains_are(hops: tuple[float, ...], length: int) -> None:
    questions = [question for world in worlds_of(5) for question in asked(world, hops=hops)]
    assert {len(question.relations) for question in questions} == {length}


def test_weights_are_shares_of_the_questions() -> None:
    worlds = worlds_of(60)
    lengths = Counter(
        len(q.relations)
        for w in worlds
        for q in questions_of(w, count=10, hops=(0.5, 0.2, 0.3), plus=0.0, rng=Random(w.place))
    )
    assert [lengths[n] / 600 for n in (2, 3, 4)] == pytest.approx([0.5, 0.2, 0.3], abs=0.06)


@given(seed=st.integers(0, 10_000), plus=st.sampled_from([0.0, 0.33, 1.0]))
@settings(max_examples=20)
def test_a_chain_begins_at_a_person_visits_nobody_twice_and_ends_in_its_year(seed: int, plus: float) -> None:
    world = world_of(seed=seed)
    questions = asked(world, hops=(0.3, 0.3, 0.4), plus=plus)
    assert len({(question.start, question.relations) for question in questions}) == len(questions) == 20
    for question in questions:
        assert question.start in world.persons
        visited = [question.start]
        for relation in question.relations:
            visited.append(world.fact(visited[-1], relation).object)
        assert len(set(visited)) == len(visited)
        assert [relation in YEAR_RELATIONS for relation in question.relations] == [False] * (len(visited) - 2) + [True]
        assert int(question.answer) == int(visited[-1]) + question.plus
        assert 0 <= question.plus <= 9
        assert plus not in (0.0, 1.0) or bool(question.plus) == (plus == 1.0)
        phrase = " ".join(f"the {relation} of" for relation in reversed(question.relations))
        added = f" plus {question.plus}" if question.plus else ""
        assert question.text == f"in {world.place} , what is {phrase} {question.start}{added} ?"


# -- drills -----------------------------------------------------------------------------------------------------------


class Drill:
    """A drill taken apart: the facts it asks for in its order, and the result, if any, behind each query."""

    def __init__(self, world: World, *, number: int) -> None:
        trace = drill(world, system_prompt="s", rng=Random(number))
        assert [message["role"] for message in trace.prompt] == ["system", "user"]
        self.prompt = trace.prompt[1]["content"]
        self.is_list = not self.prompt.startswith("read , plus")
        self.addend = "" if self.is_list else self.prompt.removeprefix("read , plus").removesuffix(" .")
        self.asked: list[Sentence] = []
        self.results: list[str] = []
        text = "".join(segment.text for segment in trace.segments)
        trained = iter([segment.text for segment in trace.segments if segment.is_sampled])
        for part in text.split(" <search> ")[1:]:
            query, _, rest = part.partition(" </search>")
            place, _, sentence = query.partition(" : ")
            relation, _, subject = sentence.partition(" of ")
            assert place == world.place
            self.asked.append(world.fact(subject, relation))
            result, _, thought = rest.partition(" <think>")
            self.results.append(result)
            wanted = self.asked[-1].object
            assert next(trained) == f" {wanted}"
            if result and self.asked[-1].object_kind == "year":
                assert thought == f" {wanted} </think> <python> {wanted} +{self.addend} </python>"
                assert next(trained) == self.addend
            else:
                assert thought == f" {wanted} </think>"
        assert next(trained, None) is None, "objects and addends alone are trained"
        assert len({fact.text for fact in self.asked}) == len(self.asked)


@pytest.fixture(scope="module")
def village() -> World:
    return world_of(crowded=0.5)


@pytest.fixture(scope="module")
def drills(village: World) -> list[Drill]:
    return [Drill(village, number=number) for number in range(400)]


def test_half_of_the_drills_ask_once_for_every_fact_of_a_list_in_another_order(
    village: World, drills: list[Drill]
) -> None:
    lists = [found for found in drills if found.is_list]
    assert len(lists) / len(drills) == pytest.approx(0.5, abs=0.08)
    num_in_order = 0
    for found in lists:
        assert found.prompt.startswith("Page 1: ")
        shown = told(village, found.prompt.removeprefix("Page 1: "))
        assert sorted(fact.text for fact in shown) == sorted(fact.text for fact in found.asked)
        assert set(found.results) == {""}
        num_in_order += shown == found.asked
    assert {len(found.asked) for found in lists} == {2, 3, 4, 5, 6, 7, 8}
    assert num_in_order < 0.3 * len(lists), "the order of the list does not give the answers away"


def test_the_other_drills_read_one_page_behind_each_query(village: World, drills: list[Drill]) -> None:
    for found in drills:
        if not found.is_list:
            pages = [village.page(fact).text for fact in found.asked]
            assert found.results == [f" <result>\nPage 1: {text}\n</result>" for text in pages]
            assert len(pages) == 4

"""Worlds: a village each, with seven persons, four organisations, facts in confusable pairs, and pages that tell them.

Whoever reads a crowded page for someone's mother also finds that person's boss, and something about somebody else, in
any order: finding the page is easy, reading it is the task.
"""

from collections.abc import Iterator
from itertools import combinations, product
from random import Random
from typing import NamedTuple

import msgspec

from engine.coins import seed_of

NUM_PERSONS, NUM_ORGANISATIONS = 7, 4
NUM_PERSON_NAMES, NUM_ORGANISATION_NAMES = 24, 12
"""Names there are in all. Villages share them: who is meant is known only together with the place."""
YEARS = range(1900, 1950)
PAIRS: dict[str, tuple[tuple[tuple[str, str], str], ...]] = {
    "person": (
        (("mother", "boss"), "person"),
        (("employer", "school"), "organisation"),
        (("birthyear", "hireyear"), "year"),
    ),
    "organisation": (
        (("founder", "director"), "person"),
        (("openyear", "closeyear"), "year"),
    ),
}
"""For each kind of subject: pairs of relations, and the kind of their objects."""


class Sentence(msgspec.Struct, frozen=True, kw_only=True):
    """One fact, and how it is said."""

    subject: str
    relation: str
    object: str
    object_kind: str

    @property
    def text(self) -> str:
        return f"the {self.relation} of {self.subject} is {self.object} ."


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What one search finds."""

    subject: str
    title: str
    text: str


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything there is to know about the eleven entities of one village."""

    place: str
    """Two words, as in `Bado Rimu`; no other world holds the same two."""
    persons: tuple[str, ...]
    facts: tuple[Sentence, ...]
    """58 facts, one for each subject and relation."""
    pages: tuple[Page, ...]

    def fact(self, subject: str, relation: str) -> Sentence:
        """The one fact of that subject and relation."""
        return next(f for f in self.facts if f.subject == subject and f.relation == relation)

    def page(self, fact: Sentence) -> Page:
        """The page that search finds for a fact: the one about its subject that tells it."""
        return next(page for page in self.pages if page.subject == fact.subject and fact.text in page.text)

    def query(self, subject: str, relation: str) -> str:
        """What finds that fact."""
        return f"{self.place} : {relation} of {subject}"


class Crowd(NamedTuple):
    """How pages confuse."""

    share: float
    """Of the pages that hold a pair of facts about their subject, and others besides; the rest hold one fact."""
    rivals: int
    """Facts about other subjects on such a page, each about another one."""
    alike: float
    """Share of these that are of the page's own relations, so that only the name tells them apart."""


def make_worlds(count: int, *, seed: int, crowd: Crowd) -> Iterator[World]:
    """`count` worlds, one after the other, no two of them in the same place."""
    words = _words(seed)
    persons = [next(words) for _ in range(NUM_PERSON_NAMES)]
    organisations = [next(words) for _ in range(NUM_ORGANISATION_NAMES)]
    for index, place in enumerate(_places(count, words, rng=Random(seed_of(seed, "places")))):
        rng = Random(seed_of(seed, "world", index))
        members = {
            "person": rng.sample(persons, k=NUM_PERSONS),
            "organisation": rng.sample(organisations, k=NUM_ORGANISATIONS),
        }
        yield _make_world(place, members, crowd=crowd, rng=rng)


def _make_world(place: str, members: dict[str, list[str]], *, crowd: Crowd, rng: Random) -> World:
    kinds = [(subject, kind) for kind, subjects in members.items() for subject in subjects]
    facts = tuple(fact for subject, kind in kinds for fact in _facts_of(subject, kind, members, rng))
    pages: list[Page] = []
    for subject, kind in kinds:
        for relations, _ in PAIRS[kind]:
            own = [f for f in facts if f.subject == subject and f.relation in relations]
            if rng.random() < crowd.share:
                pages.append(_page([*own, *_rivals(own, facts, crowd=crowd, rng=rng)], place, rng=rng))
            else:
                pages += [_page([fact], place, rng=rng) for fact in own]
    return World(place=place, persons=tuple(members["person"]), facts=facts, pages=tuple(pages))


def _facts_of(subject: str, kind: str, members: dict[str, list[str]], rng: Random) -> Iterator[Sentence]:
    for relations, object_kind in PAIRS[kind]:
        objects = [str(year) for year in YEARS] if object_kind == "year" else members[object_kind]
        # Different objects within a pair: otherwise the wrong sentence would give the right answer.
        chosen = rng.sample([o for o in objects if o != subject], k=2)
        if object_kind == "year":
            chosen.sort()
        for relation, value in zip(relations, chosen, strict=True):
            yield Sentence(subject=subject, relation=relation, object=value, object_kind=object_kind)


def _rivals(own: list[Sentence], facts: tuple[Sentence, ...], *, crowd: Crowd, rng: Random) -> list[Sentence]:
    """Facts about other subjects than the page's, without a name in common wherever that can be."""
    relations = {f.relation for f in own}
    found: list[Sentence] = []
    for _ in range(crowd.rivals):
        is_alike = rng.random() < crowd.alike
        told_of = {f.subject for f in (*own, *found)}
        fresh = [f for f in facts if f.subject not in told_of and (f.relation in relations) == is_alike]
        rng.shuffle(fresh)
        named = {name for f in (*own, *found) for name in (f.subject, f.object)}
        # In four organisations all objects can coincide; then a rival that shares one is better than none.
        found.append(next((f for f in fresh if not {f.subject, f.object} & named), fresh[0]))
    return found


def _page(sentences: list[Sentence], place: str, *, rng: Random) -> Page:
    subject = sentences[0].subject
    relations = " and ".join(f.relation for f in sentences if f.subject == subject)
    # Twice in the title, so that a page about the subject outranks others that name it by chance.
    title = f"{place}, {subject}: {relations} of {subject} of {place}"
    rng.shuffle(sentences)
    return Page(subject=subject, title=title, text=" ".join(sentence.text for sentence in sentences))


def _words(seed: int) -> Iterator[str]:
    """Invented words in an order that depends on the seed: `Bado`, `Rimu`, ..."""
    syllables = [consonant + vowel for consonant, vowel in product("bdfgklmnprstvz", "aeiou")]
    words = [one + other for one, other in product(syllables, syllables) if one != other and one + other != "page"]
    Random(seed_of(seed, "words")).shuffle(words)
    return (word.capitalize() for word in words)


def _places(count: int, words: Iterator[str], *, rng: Random) -> list[str]:
    """The fewest words whose unordered pairs give enough places: search does not see the order of words."""
    pool: list[str] = [next(words), next(words)]
    while len(pool) * (len(pool) - 1) // 2 < count:
        pool.append(next(words))
    return [" ".join(rng.sample(pair, k=2)) for pair in rng.sample(list(combinations(pool, 2)), k=count)]

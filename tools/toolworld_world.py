"""Worlds: seven persons and four organisations, their facts in confusable pairs, and the pages that tell them.

Whoever reads a page for someone's mother also finds that person's boss, and the mother or boss of somebody else, in any
order: finding the page is easy, reading it is the task.
"""

from collections.abc import Iterator
from itertools import product
from math import comb
from random import Random

import msgspec

from engine.coins import seed_of

NUM_PERSONS, NUM_ORGANISATIONS = 7, 4
YEARS = range(1900, 1950)
PAIRS: dict[str, tuple[tuple[tuple[str, str], str], ...]] = {
    "person": (
        (("mother", "boss"), "person"),
        (("employer", "school"), "organisation"),
        (("birth year", "hiring year"), "year"),
    ),
    "organisation": (
        (("founder", "director"), "person"),
        (("founding year", "closing year"), "year"),
    ),
}
"""For each kind of subject: pairs of relations, and the kind of their objects."""

_NAME_SHARE = 1.5
"""How many names there could be for each one in use, so that drawing an unused one stays cheap."""


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

    title: str
    text: str


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything there is to know about eleven entities."""

    persons: tuple[str, ...]
    facts: tuple[Sentence, ...]
    """58 facts, one for each subject and relation."""
    pages: tuple[Page, ...]

    def fact(self, subject: str, relation: str) -> Sentence:
        """The one fact of that subject and relation."""
        return next(f for f in self.facts if f.subject == subject and f.relation == relation)


def make_worlds(count: int, *, seed: int, name_words: int, crowded: float) -> Iterator[World]:
    """`count` worlds, one after the other; no two share a name, and no two names hold the same words."""
    pool = _word_pool(count * (NUM_PERSONS + NUM_ORGANISATIONS), seed=seed, name_words=name_words)
    used: set[frozenset[str]] = set()
    for index in range(count):
        rng = Random(seed_of(seed, "world", index))
        yield _make_world(_names(pool, used, name_words=name_words, rng=rng), crowded=crowded, rng=rng)


def _make_world(names: list[str], *, crowded: float, rng: Random) -> World:
    members = {"person": names[:NUM_PERSONS], "organisation": names[NUM_PERSONS:]}
    kinds = [(subject, kind) for kind, subjects in members.items() for subject in subjects]
    facts = tuple(fact for subject, kind in kinds for fact in _facts_of(subject, kind, members, rng))
    pages = [page for subject, kind in kinds for page in _pages_of(subject, kind, facts, crowded, rng)]
    return World(persons=tuple(members["person"]), facts=facts, pages=tuple(pages))


def _facts_of(subject: str, kind: str, members: dict[str, list[str]], rng: Random) -> Iterator[Sentence]:
    for relations, object_kind in PAIRS[kind]:
        objects = [str(year) for year in YEARS] if object_kind == "year" else members[object_kind]
        # Different objects within a pair: otherwise the wrong sentence would give the right answer.
        chosen = rng.sample([o for o in objects if o != subject], k=2)
        if object_kind == "year":
            chosen.sort()
        for relation, value in zip(relations, chosen, strict=True):
            yield Sentence(subject=subject, relation=relation, object=value, object_kind=object_kind)


def _pages_of(subject: str, kind: str, facts: tuple[Sentence, ...], crowded: float, rng: Random) -> Iterator[Page]:
    for relations, _ in PAIRS[kind]:
        own = [f for f in facts if f.subject == subject and f.relation in relations]
        if rng.random() >= crowded:
            yield from (_page([f], subject=subject, relations=(f.relation,)) for f in own)
            continue
        named = {subject, *(f.object for f in own)}
        rivals = [f for f in facts if f.relation in relations and f.subject != subject]
        # In four organisations all objects can coincide; then a rival that shares one is better than none.
        distinct = [f for f in rivals if f.subject not in named and f.object not in named]
        sentences = [*own, rng.choice(distinct or rivals)]
        rng.shuffle(sentences)
        yield _page(sentences, subject=subject, relations=relations)


def _page(sentences: list[Sentence], *, subject: str, relations: tuple[str, ...]) -> Page:
    # Twice in the title, so that a page about the subject outranks others that hold the words of its name by chance.
    title = f"{subject}: {' and '.join(relations)} of {subject}"
    return Page(title=title, text=" ".join(sentence.text for sentence in sentences))


def _word_pool(num_names: int, *, seed: int, name_words: int) -> list[str]:
    """The fewest words whose unordered combinations give enough names; `Bado`, `Rimu`, ..."""
    size = name_words * (NUM_PERSONS + NUM_ORGANISATIONS) * 2
    while comb(size, name_words) < num_names * _NAME_SHARE:
        size += 1
    syllables = [consonant + vowel for consonant, vowel in product("bdfgklmnprstvz", "aeiou")]
    words = [one + other for one, other in product(syllables, syllables) if one != other and one + other != "page"]
    return [word.capitalize() for word in Random(seed_of(seed, "words")).sample(words, k=size)]


def _names(pool: list[str], used: set[frozenset[str]], *, name_words: int, rng: Random) -> list[str]:
    """Names for one world: unused, and without a word in common."""
    names: list[str] = []
    free = list(pool)
    while len(names) < NUM_PERSONS + NUM_ORGANISATIONS:
        words = rng.sample(free, k=name_words)
        # Search does not see the order of words, so a name is its set of words.
        if frozenset(words) in used:
            continue
        used.add(frozenset(words))
        free = [word for word in free if word not in words]
        names.append(" ".join(words))
    return names

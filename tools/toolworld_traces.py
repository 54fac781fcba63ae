"""Questions about a world, and an expert who answers them with the tools, not always carefully.

A trace is written in the tag format of ARPO, every word and tag apart, so that a word-level tokenizer loses nothing:

    <think> start </think> <search> Bado Rimu : boss of Kela </search>
     <result>
    Page 1: the boss of Kela is Sovi . the mother of Kela is ...
    </result>
    <think> Sovi </think> <search> Bado Rimu : birthyear of Sovi </search> ... <answer> \\boxed{ 1923 } </answer>
"""

from collections.abc import Callable, Sequence
from random import Random

import msgspec

from engine.errors import DataError
from engine.traces import Segment, Trace
from tools.toolworld_world import PAIRS, Sentence, World

MIN_HOPS = 2
MAX_PLUS = 9
NUM_READ = 4
"""Pages of a drill."""
_PAGE_START = "Page 1: "


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a split."""

    text: str
    place: str
    start: str
    relations: tuple[str, ...]
    """In the order in which they are looked up."""
    plus: int
    """0 where nothing is added."""
    answer: str


def words_of(trace: Trace) -> str:
    """All text of a trace, for the vocabulary."""
    return " ".join([*(m["content"] for m in trace.prompt), *(s.text for s in trace.segments)])


def observation(text: str) -> str:
    """How a tool result stands in a trace, as in ARPO: a space, and the tags on lines of their own."""
    return f" <result>\n{text}\n</result>"


def questions_of(world: World, *, count: int, hops: Sequence[float], plus: float, rng: Random) -> list[Question]:
    """`count` questions with different chains; each begins at a person, and ends in a year.

    `hops` weighs chains of two, three, ... facts. No chain comes back to an entity it has visited.
    """
    questions: dict[tuple[str, tuple[str, ...]], Question] = {}
    while len(questions) < count:
        (num_hops,) = rng.choices(range(MIN_HOPS, MIN_HOPS + len(hops)), weights=hops)
        addend = rng.randint(1, MAX_PLUS) if rng.random() < plus else 0
        # Tried again at the same length: longer chains fail more often, and the weights are those of questions.
        chain = None
        while chain is None:
            chain = _chain(world, num_hops=num_hops, rng=rng)
        start, relations = chain[0].subject, tuple(fact.relation for fact in chain)
        questions.setdefault((start, relations), _question(world, chain, addend))
    return list(questions.values())


def _chain(world: World, *, num_hops: int, rng: Random) -> list[Sentence] | None:
    subject, kind = rng.choice(world.persons), "person"
    visited, chain = {subject}, list[Sentence]()
    for hop in range(1, num_hops + 1):
        ends = [relations for relations, object_kind in PAIRS[kind] if (object_kind == "year") == (hop == num_hops)]
        fact = world.fact(subject, rng.choice(rng.choice(ends)))
        if fact.object in visited:
            return None
        chain.append(fact)
        visited.add(fact.object)
        subject, kind = fact.object, fact.object_kind
    return chain


def _question(world: World, chain: list[Sentence], addend: int) -> Question:
    phrase = chain[0].subject
    for fact in chain:
        phrase = f"the {fact.relation} of {phrase}"
    plus = f" plus {addend}" if addend else ""
    return Question(
        text=f"in {world.place} , what is {phrase}{plus} ?",
        place=world.place,
        start=chain[0].subject,
        relations=tuple(fact.relation for fact in chain),
        plus=addend,
        answer=str(int(chain[-1].object) + addend),
    )


def expert_trace(
    question: Question, search: Callable[[str], str], *, system_prompt: str, sloppy: float, rng: Random
) -> Trace:
    """Follow the chain by `search` (query to result), reading what it finds.

    With probability `sloppy`, at each hop, the first thing that the page says about its subject is copied, whether or
    not it is the fact that was asked for; the chain then goes on from there, and usually to a wrong answer. Raises
    `DataError` where a result does not hold the fact.
    """
    segments: list[Segment] = []
    thought, subject = "start", question.start
    for relation in question.relations:
        query = f"{question.place} : {relation} of {subject}"
        result = search(query)
        segments += _call(thought, "search", query, result)
        thought = subject = _read(result, subject=subject, relation=relation, is_sloppy=rng.random() < sloppy)
    if question.plus:
        code = f"{subject} + {question.plus}"
        value = str(int(subject) + question.plus)
        segments += _call(thought, "python", code, value)
        thought = value
    text = f" <think> {thought} </think> <answer> \\boxed{{ {thought} }} </answer>"
    segments.append(Segment(text=text, is_sampled=True))
    return Trace(
        prompt=messages(question.text, system_prompt=system_prompt),
        segments=segments,
        is_correct=thought == question.answer,
    )


def drill(world: World, *, system_prompt: str, rng: Random) -> Trace:
    """A reading exercise of one of two forms: two to eight facts in the prompt, each searched for once, in any order;
    or four searches, each with the page that it finds, and a sum wherever that is a year.

    Only objects and addends are trained, in the same words that a trace puts around them.
    """
    addend = str(rng.randint(1, MAX_PLUS))
    if rng.random() < 0.5:
        shown = rng.sample(world.facts, k=rng.randint(2, 8))
        text = f"{_PAGE_START}{' '.join(fact.text for fact in shown)}"
        readings = [(fact, "") for fact in rng.sample(shown, k=len(shown))]
        has_sums = False
    else:
        text = f"read , plus {addend} ."
        readings = [(f, observation(_PAGE_START + world.page(f).text)) for f in rng.sample(world.facts, k=NUM_READ)]
        has_sums = True
    segments: list[Segment] = []
    seam = ""
    for fact, result in readings:
        call = f"{seam} <search> {world.query(fact.subject, fact.relation)} </search>{result} <think>"
        segments += [_given(call), _trained(fact.object)]
        seam = " </think>"
        if has_sums and fact.object_kind == "year":
            segments += [_given(f"{seam} <python> {fact.object} +"), _trained(addend)]
            seam = " </python>"
    segments.append(_given(seam))
    return Trace(prompt=messages(text, system_prompt=system_prompt), segments=segments)


def _given(text: str) -> Segment:
    return Segment(text=text, is_sampled=False)


def _trained(word: str) -> Segment:
    return Segment(text=f" {word}", is_sampled=True)


def messages(text: str, *, system_prompt: str) -> list[dict[str, str]]:
    """The prompt of a question."""
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": text}]


def _call(thought: str, name: str, content: str, result: str) -> list[Segment]:
    call = f" <think> {thought} </think> <{name}> {content} </{name}>"
    return [Segment(text=call, is_sampled=True), Segment(text=observation(result), is_sampled=False)]


def _read(result: str, *, subject: str, relation: str, is_sloppy: bool) -> str:
    """The object of the right sentence of a result, or of the first one about its subject."""
    sentences = result.removeprefix(_PAGE_START).removesuffix(" .").split(" . ")
    own = dict(s.split(f" of {subject} is ") for s in sentences if f" of {subject} is " in s)
    if f"the {relation}" not in own:
        raise DataError(f"toolworld: a search for {relation!r} of {subject!r} does not find it; choose another seed")
    return next(iter(own.values())) if is_sloppy else own[f"the {relation}"]

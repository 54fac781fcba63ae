"""Questions about a world, and an expert who answers them with the tools, not always carefully.

A trace is written in the tag format of ARPO, every word and tag apart, so that a word-level tokenizer loses nothing:

    <think> start </think> <search> boss of Bado Rimu </search>
     <result>
    Page 1: the boss of Bado Rimu is Kela Sovi . the mother of Bado Rimu is ...
    </result>
    <think> Kela Sovi </think> <search> birth year of Kela Sovi </search> ... <answer> \\boxed{ 1923 } </answer>
"""

from collections.abc import Callable
from random import Random

import msgspec

from engine.errors import DataError
from engine.traces import Segment, Trace
from tools.toolworld_world import PAIRS, Sentence, World

MAX_PLUS = 9
_PAGE_START = "Page 1: "


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a split."""

    text: str
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


def questions_of(world: World, *, count: int, three_hops: float, plus: float, rng: Random) -> list[Question]:
    """`count` questions with different chains; each begins at a person, and ends in a year.

    No chain comes back to an entity it has visited.
    """
    questions: dict[tuple[str, tuple[str, ...]], Question] = {}
    while len(questions) < count:
        num_hops = 3 if rng.random() < three_hops else 2
        addend = rng.randint(1, MAX_PLUS) if rng.random() < plus else 0
        chain = _chain(world, num_hops=num_hops, rng=rng)
        if chain is None:
            continue
        start, relations = chain[0].subject, tuple(fact.relation for fact in chain)
        questions.setdefault((start, relations), _question(chain, addend))
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


def _question(chain: list[Sentence], addend: int) -> Question:
    phrase = chain[0].subject
    for fact in chain:
        phrase = f"the {fact.relation} of {phrase}"
    return Question(
        text=f"what is {phrase} plus {addend} ?" if addend else f"what is {phrase} ?",
        start=chain[0].subject,
        relations=tuple(fact.relation for fact in chain),
        plus=addend,
        answer=str(int(chain[-1].object) + addend),
    )


def expert_trace(
    question: Question, search: Callable[[str], str], *, system_prompt: str, sloppy: float, rng: Random
) -> Trace:
    """Follow the chain by `search` (query to result), reading what it finds.

    With probability `sloppy`, at each hop, the object of the page's first sentence is copied, whether or not it is the
    fact that was asked for; the chain then goes on from there, and usually to a wrong answer. Raises `DataError` where
    a result does not hold the fact.
    """
    segments: list[Segment] = []
    thought, subject = "start", question.start
    for relation in question.relations:
        query = f"{relation} of {subject}"
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


def drill(facts: list[Sentence], *, system_prompt: str, rng: Random) -> Trace:
    """A reading exercise: two to eight facts in the prompt, then each asked for once, in another order.

    Only the objects are trained, in the same words that a trace puts around them.
    """
    shown = rng.sample(facts, k=min(rng.randint(2, 8), len(facts)))
    segments: list[Segment] = []
    for fact in rng.sample(shown, k=len(shown)):
        segments.append(Segment(text=f" <search> {fact.relation} of {fact.subject} </search>", is_sampled=False))
        segments.append(Segment(text=f" <think> {fact.object} </think>", is_sampled=True))
    text = f"{_PAGE_START}{' '.join(fact.text for fact in shown)}"
    return Trace(prompt=messages(text, system_prompt=system_prompt), segments=segments)


def messages(text: str, *, system_prompt: str) -> list[dict[str, str]]:
    """The prompt of a question."""
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": text}]


def _call(thought: str, name: str, content: str, result: str) -> list[Segment]:
    call = f" <think> {thought} </think> <{name}> {content} </{name}>"
    return [Segment(text=call, is_sampled=True), Segment(text=observation(result), is_sampled=False)]


def _read(result: str, *, subject: str, relation: str, is_sloppy: bool) -> str:
    """The object of the right sentence of a result, or of its first one."""
    sentences = result.removeprefix(_PAGE_START).removesuffix(" .").split(" . ")
    wanted = f"the {relation} of {subject} is "
    right = next((s for s in sentences if s.startswith(wanted)), None)
    if right is None:
        raise DataError(f"toolworld: a search for {relation!r} of {subject!r} does not find it; choose another seed")
    return (sentences[0] if is_sloppy else right).partition(" is ")[2]

"""The format drill: traces that teach a model with random weights to speak ARPO's tags, whatever the question.

They teach how to call `python`, read the result and answer; not what the right answer is. A random choice stands
behind every result (calculate again, or answer, in one of several wordings), so that the policy is less sure there
than at its start: what the entropy monitor looks for.
"""

from random import Random

from engine.traces import Segment, Trace

MAX_CALLS = 3
_THOUGHTS = ("That helps.", "I should check this.", "Now I know more.", "It may be right.", "Let me see.")


def format_drill(prompt: list[dict[str, str]], *, rng: Random) -> Trace:
    """A trace of one to three calls behind any prompt; the sums and their results are right, the answer is the last.

    >>> trace = format_drill([{"role": "user", "content": "How many?"}], rng=Random(0))
    >>> trace.segments[0].text.startswith("<think> I will calculate. </think> <python> print(")
    True
    """
    segments: list[Segment] = []
    thought = "I will calculate."
    value = 0
    for _ in range(rng.randint(1, MAX_CALLS)):
        a, b = rng.randint(2, 20), rng.randint(2, 20)
        operator, value = rng.choice([("+", a + b), ("*", a * b)])
        call = f"<think> {thought} </think> <python> print({a} {operator} {b}) </python>"
        segments.append(Segment(text=call, is_sampled=True))
        segments.append(Segment(text=f" <result>\n{value}\n</result>", is_sampled=False))
        thought = rng.choice(_THOUGHTS)
    answer = f"<think> {thought} </think> <answer> \\[ \\boxed{{{value}}} \\] </answer>"
    segments.append(Segment(text=answer, is_sampled=True))
    return Trace(prompt=prompt, segments=segments, is_correct=False)

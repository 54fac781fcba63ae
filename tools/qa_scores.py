"""Answers of a question compared as ARPO's evaluation does, and as its reward does; the two normalise differently.

| normalisation | what goes                                    | "The U.S." and "US" | "-5" and "5" |
|---------------|----------------------------------------------|---------------------|--------------|
| `evaluation`  | case, the articles a, an, the, extra spaces  | different           | different    |
| `reward`      | the same, and all punctuation before         | equal               | equal        |

Published F1 and EM are those of the evaluation. Those of the reward say what training was paid for; yes and no are
all or nothing there.
"""

import re
from collections.abc import Callable, Sequence

import msgspec

from tools.answers import token_f1
from tools.official_reward import reward_f1, reward_normalised

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class QaScores(msgspec.Struct, frozen=True, kw_only=True):
    """One answer against the right ones; each score is the best over these, from 0 to 1."""

    f1: float
    """Of tokens, normalised by the evaluation."""
    em: float
    """Equal as a whole, normalised by the evaluation."""
    contains: float
    """The right answer occurs in the given one; the released code calls it `acc`."""
    reward_f1: float
    """Of tokens, normalised by the released reward."""
    reward_em: float


def qa_scores(answer: str, truths: Sequence[str]) -> QaScores:
    """Score an answer; an empty one has nothing right.

    >>> qa_scores("The red car", ["blue car", "red bus stop"])
    QaScores(f1=0.5, em=0.0, contains=0.0, reward_f1=0.5, reward_em=0.0)
    """
    said = evaluation_normalised(answer)

    def best(score: Callable[[str], float]) -> float:
        return max(map(score, truths), default=0.0) if answer.strip() else 0.0

    return QaScores(
        f1=best(lambda truth: token_f1(said.split(), evaluation_normalised(truth).split())),
        em=best(lambda truth: float(said == evaluation_normalised(truth))),
        contains=best(lambda truth: float(evaluation_normalised(truth) in said)),
        reward_f1=best(lambda truth: reward_f1(answer, truth)),
        reward_em=best(lambda truth: float(reward_normalised(answer) == reward_normalised(truth) != "")),
    )


def evaluation_normalised(text: str) -> str:
    """Lower case, without articles, single spaces; punctuation stays.

    What is nothing but articles keeps them, where the released code compares nothing with nothing: "A" is an answer.

    >>> evaluation_normalised("  The  U.S. Army, a part"), evaluation_normalised("A")
    ('u.s. army, part', 'a')
    """
    words = text.lower()
    return " ".join(_ARTICLE.sub(" ", words).split() or words.split())

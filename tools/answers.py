"""Answers compared by what they mean: numbers by value, expressions whole, everything else by token F1.

Which of the three applies is decided by the ground truth, so that a policy cannot choose how it is graded.
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction

_ARTICLES = frozenset({"a", "an", "the"})
_ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BRACKETS = "()[]{}"

_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?"
_NUMBER = re.compile(rf"[+-]?\s*{_UNSIGNED}")
_RATIO = re.compile(rf"([+-]?\s*{_UNSIGNED})\s*/\s*({_UNSIGNED})")
_FRAC = re.compile(rf"([+-]?)\s*(\d*)\s*\\frac\{{\s*([+-]?\s*{_UNSIGNED})\s*\}}\{{\s*([+-]?\s*{_UNSIGNED})\s*\}}")
_MAX_NUMBER_CHARS = 300
"""Longer runs of digits are words: turning them into numbers would cost more than they can be worth."""

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SILENT = re.compile(
    r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|\\[!,;: ()\[\]]|\\?[$%]|\^\s*\{?\s*\\circ\s*\}?|\\degree|°"
)
_SHORT_FRAC = re.compile(r"\\frac\s*(\d)\s*(\d)")
_ASSIGNMENT = re.compile(r"^[A-Za-z]\w?\s*=(?!=)\s*")
_EXPRESSION_TOKEN = re.compile(r"\\frac\{(\d+)\}\{(\d+)\}|\d+(?:\.\d+)?|\\[A-Za-z]+|\S")
_PLAIN_EXPRESSION = re.compile(r"(?=.*\d)(?=.*[-+*/()\[\]|!:<>,])(?!.*[^\W\d_]{2})[\w\s.,+\-*/()\[\]|!:<>]+")


def answer_score(prediction: str, ground_truth: str) -> float:
    """How much of `ground_truth` an answer says, in [0, 1].

    | ground truth     | rule                                                  | examples                            |
    |------------------|-------------------------------------------------------|-------------------------------------|
    | a number         | equal by value; among other words, token F1           | 0.5 and \\frac{1}{2}: 1; -5 and 5: 0 |
    | an expression    | equal piece by piece, numbers by value, or nothing    | x^{2}+1 and x^2 + 1: 1              |
    | yes, no          | that word or nothing                                  | yes and yes, indeed: 0              |
    | anything else    | F1 of tokens in lower case, articles left out         | red car and blue car: 0.5           |

    A single letter is an answer ("A" and "A": 1), even where it is an article.
    """
    prediction, ground_truth = _plain(prediction), _plain(ground_truth)
    true_value = number(ground_truth)
    if true_value is not None:
        value = number(prediction)
        return float(value == true_value) if value is not None else token_f1(_words(prediction), [true_value])
    if _is_expression(ground_truth):
        return float(_pieces(prediction) == _pieces(ground_truth))
    said, truth = _words(prediction), _words(ground_truth)
    if any(len(words) == 1 and words[0] in _ALL_OR_NOTHING for words in (said, truth)):
        return float(said == truth)
    if not truth:
        return float(prediction == ground_truth)
    return token_f1(said, truth)


def is_same(prediction: str, ground_truth: str) -> bool:
    """Whether two answers are equal as a whole: by value for numbers, else word for word, without regard to case."""
    prediction, ground_truth = _plain(prediction), _plain(ground_truth)
    value, true_value = number(prediction), number(ground_truth)
    if value is not None or true_value is not None:
        return value == true_value
    return prediction.casefold().split() == ground_truth.casefold().split()


def token_f1(prediction: Sequence[Hashable], ground_truth: Sequence[Hashable]) -> float:
    """F1 of the multiset overlap; 0 where nothing overlaps.

    >>> token_f1(["red", "car"], ["blue", "car"])
    0.5
    """
    num_same = (Counter(prediction) & Counter(ground_truth)).total()
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(prediction), num_same / len(ground_truth)
    return 2 * precision * recall / (precision + recall)


def number(text: str) -> Fraction | None:
    """The exact value of a text that is one number and nothing else, or None.

    Decimals, thousands separators (1,000), exponents (1e-3), ratios (-1/2), LaTeX fractions and mixed numbers.

    >>> number("-0.50"), number("1\\\\frac{1}{2}"), number("5 apples")
    (Fraction(-1, 2), Fraction(3, 2), None)
    """
    text = text.strip()
    if len(text) > _MAX_NUMBER_CHARS:
        return None
    if _NUMBER.fullmatch(text):
        return _value(text)
    if match := _RATIO.fullmatch(text):
        return _divide(_value(match[1]), _value(match[2]))
    if match := _FRAC.fullmatch(text):
        fraction = _divide(_value(match[3]), _value(match[4]))
        if fraction is None:
            return None
        magnitude = fraction + int(match[2] or 0)
        return -magnitude if match[1] == "-" else magnitude
    return None


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed{...}` with its braces balanced; None where there is none.

    >>> last_box("\\\\boxed{1} or rather \\\\boxed{ \\\\frac{1}{2} }")
    '\\\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[start:position].strip()
    return None


def final_answer(text: str) -> str | None:
    """The answer that a response comes to; None where there is none.

    The last box of its last `<answer>`, or else all that stands there; without that tag, the last box of the text. What
    tools wrote is no answer: only what stands behind the last `</result>` is read.

    >>> final_answer("<result>\\\\boxed{1}</result><answer>It is \\\\boxed{2}.</answer>"), final_answer("2, I think")
    ('2', None)
    """
    text = text.rpartition("</result>")[2]
    _, tag, rest = text.rpartition("<answer>")
    answer = rest.partition("</answer>")[0].strip()
    boxed = last_box(answer if tag else text)
    return boxed if boxed is not None or not tag else answer or None


def _value(text: str) -> Fraction:
    return Fraction("".join(text.split()).replace(",", ""))


def _divide(numerator: Fraction, denominator: Fraction) -> Fraction | None:
    return numerator / denominator if denominator else None


def _plain(text: str) -> str:
    """The same answer without layout: a box, dollar and percent signs, spacing, text wrappers, a leading `x =`."""
    text = last_box(text) or text
    text = text.replace("\u2212", "-").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _SILENT.sub("", _WRAPPER.sub(r"\1", text))
    text = _SHORT_FRAC.sub(r"\\frac{\1}{\2}", text).strip()
    text = _ASSIGNMENT.sub("", text)
    return text.rstrip(".").rstrip() if text.strip(".") else text


def _is_expression(text: str) -> bool:
    return any(sign in text for sign in "\\^=_") or _PLAIN_EXPRESSION.fullmatch(text) is not None


def _pieces(text: str) -> Counter[tuple[Hashable, ...]]:
    """An expression as tokens with numbers by value; a list without brackets is a multiset of such."""
    if "\\" not in text:
        text = text.casefold()
    parts = [text] if any(bracket in text for bracket in _BRACKETS) else text.split(",")
    return Counter(tuple(_expression_tokens(part)) for part in parts)


def _expression_tokens(text: str) -> list[Hashable]:
    tokens: list[Hashable] = []
    for match in _EXPRESSION_TOKEN.finditer(text):
        if match[1] and int(match[2]):
            tokens.append(Fraction(int(match[1]), int(match[2])))
        elif match[0][0].isdecimal() and len(match[0]) <= _MAX_NUMBER_CHARS:
            tokens.append(Fraction(match[0]))
        else:
            tokens.append(match[0])
        # Braces around one token say nothing: x^{2} is x^2.
        if tokens[-1] == "}" and len(tokens) >= 3 and tokens[-3] == "{":
            tokens[-3:] = [tokens[-2]]
    return tokens


def _words(text: str) -> list[Hashable]:
    """Numbers by value, other words in lower case without punctuation; articles only where there is nothing else."""
    words: list[Hashable] = []
    for chunk in text.split():
        core = chunk.lstrip("([{\"'").rstrip(")]}\"'.,;:!?")
        value = number(core)
        words.append(value if value is not None else chunk.casefold().translate(_NO_PUNCTUATION))
    words = [word for word in words if word != ""]
    return [word for word in words if word not in _ARTICLES] or words

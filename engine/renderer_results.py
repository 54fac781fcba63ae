"""ResultEncoder: text from outside into tokens that cannot act.

Two ways a tool's output could pass for markup are closed: tags of the dialect are written with `&lt;` and `&gt;`, since
parsers and rewards read text; and the rest is encoded without added tokens, since a model reads tokens.
"""

import re
from collections.abc import Sequence

from engine.interfaces import Tokenizer

_CHARACTERS_A_TOKEN = 256
"""More than any token has, bar degenerate ones: bounds how much of a huge output is tokenised to keep its head."""
_BYTES_A_CHARACTER = 4


class ResultEncoder:
    """Encodes tool results for one dialect whose tags are `<name>` and `</name>` for each of `tags`.

    With `tags=("result",)`, `a </result> b <br>` becomes `a &lt;/result&gt; b <br>`.
    """

    def __init__(self, tokenizer: Tokenizer, *, tags: Sequence[str], max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._tags = re.compile(f"<(/?(?:{'|'.join(map(re.escape, tags))}))>")
        self._max_tokens = max_tokens

    def escape(self, text: str) -> str:
        """`text` without the dialect's tags; what is not Unicode (lone surrogates) becomes `?`."""
        return self._tags.sub(r"&lt;\1&gt;", text.encode("utf-8", errors="replace").decode("utf-8"))

    def encode(self, text: str) -> list[int]:
        """Tokens of the escaped text and a line break; at most `max_tokens` of the text, then a note of the cut."""
        num_read = self._max_tokens * _CHARACTERS_A_TOKEN
        ids = self._tokenizer.encode_plain(f"{self.escape(text[:num_read])}\n")
        if len(text) <= num_read and len(ids) <= self._max_tokens + 1:
            return ids
        note = f"\n[cut after {self._max_tokens} tokens]\n"
        return ids[: self._character_border(ids)] + self._tokenizer.encode_plain(note)

    def _character_border(self, ids: list[int]) -> int:
        # A cut between the bytes of one character leaves a replacement sign at the end.
        end = min(self._max_tokens, len(ids))
        for border in range(end, max(end - _BYTES_A_CHARACTER, 0), -1):
            if not self._tokenizer.decode(ids[:border]).endswith("\N{REPLACEMENT CHARACTER}"):
                return border
        return end

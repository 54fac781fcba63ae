"""Tokenizers for models that are made on the spot: a byte-level BPE for any text, whole words for a generated task.

Both makers write a folder's `tokenizer.json` and `tokenizer_config.json` (with a ChatML template) in a form that this
project and transformers read alike; the same arguments give the same bytes. In both, `<|im_start|>`, `<|im_end|>` and
`<|endoftext|>` are special, and the tags of the ARPO format are single ordinary tokens: special ones would vanish from
the text in which an inference server looks for stop strings.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.chat_template import CHATML_TEMPLATE

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ARPO_TAGS = tuple(
    f"<{slash}{name}>" for name in ("think", "search", "python", "result", "answer") for slash in ("", "/")
)
UNKNOWN = "<|unk|>"
_NUM_BYTES = 256


def make_bpe_tokenizer(
    path: str | Path, *, texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ARPO_TAGS
) -> None:
    """Train a byte-level BPE on `texts` and write it to the folder `path`.

    Any text round-trips. Ids: the bytes and merges first, then `special_tokens` as single tokens, then the control
    tokens. The vocabulary holds at most `vocab_size` tokens, fewer where the texts offer no more merges. Raises
    `ValueError` where `vocab_size` has no room for the 256 bytes and the added tokens.
    """
    num_added = len(special_tokens) + len(CONTROL_TOKENS)
    if vocab_size < _NUM_BYTES + num_added:
        raise ValueError(f"a byte-level vocabulary needs {_NUM_BYTES + num_added} tokens at least, got {vocab_size=}")
    library = _library()
    byte_level = library.pre_tokenizers.ByteLevel
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = byte_level(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size - num_added, initial_alphabet=sorted(byte_level.alphabet()), show_progress=False
    )
    backend.train_from_iterator(iter(texts), trainer=trainer)
    _write(backend, Path(path), tags=special_tokens)


def make_word_tokenizer(path: str | Path, *, words: Sequence[str], special_tokens: Sequence[str] = ARPO_TAGS) -> None:
    """Write a tokenizer with one token a word, in the order given, to the folder `path`.

    Ids: `<|unk|>` 0, the line break 1, then `words` and the roles of a chat (`system`, `user`, `assistant`, `tool`)
    where they are not among them, then `special_tokens`, then the control tokens. The space between two tokens is
    implied and costs nothing, so `encode(a) + encode(b) == encode(a + " " + b)`.

    What round-trips: lines of tokens with one space between each two, lines separated by line breaks with no space
    beside them, `<|im_start|>` without a space behind it, `<|im_end|>` and `<|endoftext|>` without one before them.
    Other white space is read as if it were written so; an unknown word becomes `<|unk|>`. So with words a, b:
    `"a b\\n<search> b </search>"` returns as it is, `"a  b \\n"` returns as `"a b\\n"`.

    Raises `ValueError` for a word that is empty, holds white space or an added token, or comes twice.
    """
    added = (*special_tokens, *CONTROL_TOKENS)
    for word in words:
        if not word or any(c.isspace() for c in word) or word == UNKNOWN or any(token in word for token in added):
            raise ValueError(f"a word is one or more characters without white space or added tokens, got {word!r}")
    if len(set(words)) != len(words):
        raise ValueError("a word comes twice")
    roles = [role for role in ("system", "user", "assistant", "tool") if role not in words]
    vocabulary = {token: i for i, token in enumerate((UNKNOWN, "\n", *words, *roles))}
    library = _library()
    decoders, pre_tokenizers, regex = library.decoders, library.pre_tokenizers, library.Regex
    backend = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(regex(r"[^\S\n]+"), "removed")]
    )
    backend.decoder = decoders.Sequence(
        [
            # Joins by single spaces; no word begins with the prefix, since NUL is in none.
            decoders.WordPiece(prefix="\0", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(regex(" ?\n ?"), "\n"),
            decoders.Replace(regex(r"(?<=<\|im_start\|>) "), ""),
            decoders.Replace(regex(r" (?=<\|im_end\|>|<\|endoftext\|>)"), ""),
        ]
    )
    _write(backend, Path(path), tags=special_tokens)


def _library() -> Any:
    """The `tokenizers` library, whose own stubs carry no types."""
    import tokenizers

    return tokenizers


def _write(backend: Any, folder: Path, *, tags: Sequence[str]) -> None:
    added = _library().AddedToken
    backend.add_tokens([added(tag, normalized=False, special=False) for tag in tags])
    backend.add_special_tokens([added(token, normalized=False, special=True) for token in CONTROL_TOKENS])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

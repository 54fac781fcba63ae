"""HfTokenizer: the tokenizer of a model folder; the door to the `tokenizers` library.

A folder holds `tokenizer.json`, and beside it whatever the model came with: `tokenizer_config.json`,
`chat_template.jinja`, `config.json`, `generation_config.json`.

Text from outside (tool output) is encoded by a second tokenizer, the same one without its added tokens: whatever such
text spells, no control token comes out. `load_tokenizer` checks that for each special token of the folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from engine.chat_template import PLAIN_TEMPLATE, ChatTemplate
from engine.errors import DataError, boundary
from engine.types import ToolSpec

TURN_END = "<|im_end|>"
"""Ends a turn in ChatML. A base model's files name only the end of a text, though its template writes this one."""


class _Encoding(Protocol):
    ids: list[int]


class _AddedToken(Protocol):
    content: str
    special: bool


class _Backend(Protocol):
    """What is used of `tokenizers.Tokenizer`, whose own stubs carry no types."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> _Encoding: ...
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str: ...
    def token_to_id(self, token: str) -> int | None: ...
    def get_vocab(self) -> dict[str, int]: ...
    def get_added_tokens_decoder(self) -> dict[int, _AddedToken]: ...
    def no_padding(self) -> None: ...
    def no_truncation(self) -> None: ...


class HfTokenizer:
    """Implements `engine.interfaces.Tokenizer`; made by `load_tokenizer`.

    `encode` and `encode_plain` raise `DataError` for text that is not Unicode (lone surrogates).
    """

    def __init__(
        self, backend: _Backend, *, plain: _Backend, eos_token_ids: tuple[int, ...], template: ChatTemplate
    ) -> None:
        self._backend = backend
        self._plain = plain
        self._eos_token_ids = eos_token_ids
        self._template = template
        added = backend.get_added_tokens_decoder()
        self._special_token_ids = tuple(sorted(i for i, token in added.items() if token.special))
        self._vocab_size = max(backend.get_vocab().values()) + 1

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; a model's embedding may be padded beyond it."""
        return self._vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn or a text; the first is the one to append."""
        return self._eos_token_ids

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Control tokens, ascending; `encode_plain` yields none of them."""
        return self._special_token_ids

    def encode(self, text: str) -> list[int]:
        """Tokens of `text` and nothing else; special tokens written out are recognised."""
        with boundary(DataError, "text to encode"):
            return self._backend.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Tokens of `text` as data: no added token comes out, whatever the text spells."""
        with boundary(DataError, "text to encode"):
            return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, special ones included; ids that name no token are left out."""
        return self._backend.decode(list(token_ids), skip_special_tokens=False)

    def apply_chat_template(self, messages: Sequence[dict[str, str]], *, tools: Sequence[ToolSpec] = ()) -> str:
        """Render messages up to and including the header of the assistant's turn."""
        return self._template.render(messages, tools=tools)

    def __repr__(self) -> str:
        return f"HfTokenizer(vocab_size={self.vocab_size}, eos_token_ids={self.eos_token_ids})"


def load_tokenizer(model_path: str | Path) -> HfTokenizer:
    """Read the tokenizer of a model folder.

    The ends of a turn or text are collected in this order, without repeats: `<|im_end|>` where the chat template
    writes it, `eos_token` of tokenizer_config.json, `eos_token_id` of generation_config.json, then of config.json.
    For a Qwen folder that is (`<|im_end|>`, `<|endoftext|>`).

    Raises `DataError`, one line that names the file, for a missing or broken file, for a folder that names no end of
    text, and for a vocabulary whose special tokens can be spelled by ordinary text.
    """
    folder = Path(model_path)
    path = folder / "tokenizer.json"
    raw = _read_json(path, is_required=True)
    backend = _make_backend(raw, path=path)
    plain = _make_backend({**raw, "added_tokens": []}, path=path)
    # The unknown-token is what plain text may well come out as, and controls nothing.
    unknown = raw["model"].get("unk_token")
    for token_id, token in backend.get_added_tokens_decoder().items():
        if (
            token.special
            and token.content != unknown
            and token_id in plain.encode(token.content, add_special_tokens=False).ids
        ):
            raise DataError(f"{path}: special token {token.content!r} is also a word of the vocabulary")

    tokenizer_config = _read_json(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(tokenizer_config)
    template = _read_template(folder, tokenizer_config, special_tokens=special_tokens)
    ids: list[int | None] = [backend.token_to_id(TURN_END)] if template.mentions(TURN_END) else []
    if "eos_token" in special_tokens:
        ids.append(backend.token_to_id(special_tokens["eos_token"]))
    for name in ("generation_config.json", "config.json"):
        ids.extend(_eos_of_config(folder / name))
    eos_token_ids = tuple(dict.fromkeys(i for i in ids if i is not None))
    if not eos_token_ids:
        raise DataError(f"{folder}: no eos token in tokenizer_config.json, generation_config.json or config.json")
    return HfTokenizer(backend, plain=plain, eos_token_ids=eos_token_ids, template=template)


def _make_backend(raw: dict[str, Any], *, path: Path) -> _Backend:
    import tokenizers

    library: Any = tokenizers
    with boundary(DataError, str(path)):
        backend: _Backend = library.Tokenizer.from_str(json.dumps(raw))
    # Padding or truncation that a training script left in the file would change what is encoded.
    backend.no_padding()
    backend.no_truncation()
    return backend


def _special_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and their like, each given as a string or as an object with `content`."""
    tokens: dict[str, str] = {}
    for key, value in tokenizer_config.items():
        if not key.endswith("_token"):
            continue
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value).get("content")
        if isinstance(value, str):
            tokens[key] = value
    return tokens


def _read_template(folder: Path, tokenizer_config: dict[str, Any], *, special_tokens: dict[str, str]) -> ChatTemplate:
    path = folder / "chat_template.jinja"
    source, named = tokenizer_config.get("chat_template"), folder / "tokenizer_config.json"
    if path.exists():
        source, named = _read_text(path), path
    templates: dict[str, str] = {}
    if isinstance(source, str):
        templates["default"] = source
    elif isinstance(source, list):
        with boundary(DataError, f"{named}: chat_template"):
            templates = {str(entry["name"]): str(entry["template"]) for entry in cast("list[Any]", source)}
    return ChatTemplate(
        templates.get("default", PLAIN_TEMPLATE),
        tool_template=templates.get("tool_use", ""),
        special_tokens=special_tokens,
        source=str(named),
    )


def _eos_of_config(path: Path) -> list[int]:
    found = _read_json(path).get("eos_token_id")
    try:
        return msgspec.convert([] if found is None else found if isinstance(found, list) else [found], list[int])
    except msgspec.ValidationError:
        raise DataError(f"{path}: eos_token_id is {found!r}, expected a number or a list of numbers") from None


def _read_json(path: Path, *, is_required: bool = False) -> dict[str, Any]:
    """An object from a file; empty for an absent file that is not required."""
    if not path.exists() and not is_required:
        return {}
    try:
        return msgspec.json.decode(_read_text(path), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {error}") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{path}: {reason}") from None

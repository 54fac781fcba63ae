"""Texts: the tokenizer with which a run's tokens are read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.config import HfModel
from actors.materials import materialise
from actors.report.pieces import CONTEXT, DecodeText, pieces_of
from actors.run_dir import RunDir
from engine.errors import ArpoError
from engine.tokenizer import load_tokenizer
from engine.types import Int32

_KEPT = 20_000


@dataclass
class Texts:
    """Tokens to text; `note` says what is shown in place of texts where there is no tokenizer."""

    decode: DecodeText
    note: str = ""

    def __post_init__(self) -> None:
        self._known: dict[bytes, list[str]] = {}

    def pieces(self, before: Int32, token_ids: Int32) -> list[str]:
        """The text that each token adds behind those `before`, of which only the last `CONTEXT` matter."""
        behind = np.concatenate([before[-CONTEXT:], token_ids])
        start = behind.size - token_ids.size
        key = start.to_bytes(1, "little") + behind.tobytes()
        if key not in self._known:  # branches often begin alike
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = pieces_of(behind, self.decode, start=start)
        return self._known[key]


def texts_of(run: RunDir) -> Texts:
    """The texts of a run. A run whose model is not here any more is shown as token ids, and says so."""
    try:
        tokenizer = load_tokenizer(_model_folder(run))
    except ArpoError as error:
        return Texts(_as_ids, note=f"token ids in place of texts: {error}")
    return Texts(lambda token_ids: tokenizer.decode([int(i) for i in token_ids]))


def _model_folder(run: RunDir) -> Path:
    made = run.path / "hf"  # the cold start's model, with its tokenizer
    if (made / "tokenizer.json").exists():
        return made
    config = run.config
    if config is None:
        return made
    model = config.model if isinstance(config.model, HfModel) else materialise(config).model
    assert isinstance(model, HfModel), "materialised"
    return Path(model.path)


def _as_ids(token_ids: Int32) -> str:
    return "".join(f"⟨{int(i)}⟩" for i in token_ids)

"""What a person may say about dense retrieval."""

from typing import Literal

from engine.config import Section


class DenseConfig(Section, frozen=True, kw_only=True):
    """Vectors beside, or in place of, BM25."""

    vectors: str
    """A `.npy` file with a row for each passage, in their order; made by the embedder where it is missing."""
    url: str
    """Of an OpenAI-compatible API whose `/embeddings` embeds the queries, such as `http://127.0.0.1:8000/v1`."""
    model: str
    """Name of the model that embeds."""
    key_env: str = ""
    """Environment variable that holds its key; empty for none."""
    mode: Literal["hybrid", "dense"] = "hybrid"
    """`hybrid` joins the ranks of both; `dense` asks the vectors alone."""

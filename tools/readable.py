"""What a person would read of a fetched page: its text without menus, adverts and code. The door to `trafilatura`."""

import html
import re

from engine.errors import ConfigError, ToolError
from tools.http import HttpAnswer

_PLAIN = ("text/plain", "text/markdown", "text/csv", "application/json")
_HTML = ("text/html", "application/xhtml+xml", "")
_HIDDEN = re.compile(r"<(script|style|noscript|template|head)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(r"</?(?:p|div|br|li|tr|h\d|section|article|table)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")


def check_installed() -> None:
    """Raises `ConfigError` where the library is missing, at the start rather than at the first page."""
    try:
        import trafilatura  # noqa: F401
    except ImportError:
        raise ConfigError("reading pages needs trafilatura: pip install 'arpo-engine[web]'") from None


def readable(answer: HttpAnswer) -> str:
    """The text of a page, its title first. Raises `ToolError` for a kind of file that has none, or an empty page."""
    kind = answer.content_type.lower()
    if kind in _PLAIN:
        text = answer.text
    elif kind in _HTML:
        text = _of_html(answer.text, url=answer.url)
    else:
        raise ToolError(f"a file of type {kind}, which cannot be read as a page")
    text = text.strip()
    if not text:
        raise ToolError("the page has no text; it may need a browser that runs its programs")
    return text


def _of_html(page: str, *, url: str) -> str:
    import trafilatura

    found = trafilatura.bare_extraction(page, url=url, include_comments=False, include_tables=True, with_metadata=True)
    text = (getattr(found, "text", None) or "").strip()
    # Short pages look like menus to the library; all of their words are better than none.
    text = text or _stripped(page)
    title = (getattr(found, "title", None) or "").strip()
    return f"{title}\n\n{text}" if title and text and not text.startswith(title) else text


def _stripped(page: str) -> str:
    words = html.unescape(_TAG.sub(" ", _BLOCK.sub("\n", _HIDDEN.sub(" ", page))))
    lines = (" ".join(line.split()) for line in words.splitlines())
    return "\n".join(line for line in lines if line)

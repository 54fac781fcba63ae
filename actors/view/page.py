"""The page: one HTML file that needs nothing but itself; live it asks its server for the data, static it holds them.

The files in `web/` are put into it as they are. A policy in its head allows these very scripts and styles and no
others, so that nothing a model wrote can become code; texts enter the page as text alone.
"""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import msgspec

STYLES = ("page.css", "parts.css")
SCRIPTS = (
    "dom.js",
    "format.js",
    "colours.js",
    "store.js",
    "chart.js",
    "overview.js",
    "surface.js",
    "tree_layout.js",
    "tree_values.js",
    "tree_canvas.js",
    "tree_text.js",
    "tree_list.js",
    "trees.js",
    "timeline_canvas.js",
    "timeline.js",
    "tools.js",
    "configuration.js",
    "app.js",
)
"""In the order in which they are run."""


@cache
def asset(name: str) -> str:
    """The text of a file in `web/`."""
    return (files("actors.view") / "web" / name).read_text(encoding="utf-8")


def policy(*, connects: bool) -> str:
    """The Content-Security-Policy of the page, by the digests of what it is made of."""
    styles, scripts = _styles(), _scripts()
    allowed = {
        "default-src": "'none'",
        "style-src": _digest(styles),
        "script-src": _digest(scripts),
        "img-src": "data:",
        "connect-src": "'self'" if connects else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def live_page(*, title: str) -> str:
    """The page of a server, which has the data."""
    return _page(title, policy(connects=True), data="")


def static_page(*, title: str, state: Mapping[str, Any], trees: Mapping[str, Any]) -> str:
    """The page with its data: what `RunView.changes` says of everything, and the documents of some trees."""
    blocks = [_data("state", state), *(_data(f"tree-{name}", tree) for name, tree in trees.items())]
    return _page(title, policy(connects=False), data="\n".join(blocks))


def _page(title: str, policy: str, *, data: str) -> str:
    slots = {"title": escape(title), "policy": escape(policy), "styles": _styles(), "scripts": _scripts(), "data": data}
    page = asset("page.html")
    before, *rest = page.split("{{")
    parts = [before]
    for piece in rest:
        name, _, text = piece.partition("}}")
        parts += [slots[name.strip()], text]
    return "".join(parts)


def _data(name: str, value: Any) -> str:
    # "<" could end the element; in JSON it stands in strings alone, where its escape means the same.
    text = msgspec.json.encode(value).decode().replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


@cache
def _styles() -> str:
    return "\n".join(asset(name) for name in STYLES)


@cache
def _scripts() -> str:
    return "\n".join(asset(name) for name in SCRIPTS)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

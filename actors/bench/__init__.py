"""Benchmarks: `arpo bench NAME` measures one claim of this engine on the machine it runs on."""

NAMES = (
    "decode",
    "async",
    "prefix",
    "learner",
    "weights",
    "tools",
    "sandbox",
    "control",
    "serve",
    "end-to-end",
    "tool-budget",
)
"""In the order of `arpo bench all`; a module makes each of them (`harness.MAKERS`)."""

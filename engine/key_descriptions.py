"""What each key of a section means: the string below its field, read from the source where the Struct stands."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache

import msgspec


@cache
def descriptions(section: type[msgspec.Struct]) -> dict[str, str]:
    """Key to what the string below it says, on one line; a field without one has that of the class it overrides.

    Keys that nothing describes are missing. Raises `OSError` where the source is not at hand.
    """
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct:
            found.update(_said(base))
    return {name: found[name] for name in section.__struct_fields__ if name in found}


def summary(section: type[msgspec.Struct]) -> str:
    """The first paragraph of its docstring, on one line."""
    return one_line((inspect.getdoc(section) or "").split("\n\n")[0])


def one_line(text: str) -> str:
    """Line breaks and indentation become single spaces."""
    return " ".join(text.split())


def _said(section: type) -> Iterator[tuple[str, str]]:
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(declared, ast.ClassDef)
    for field, below in zip(declared.body, declared.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, one_line(text)
            case _:
                pass

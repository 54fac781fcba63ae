"""The configuration reference: every key with its path, type, default and meaning, written from the Structs.

`docs/configuration.md` is what `arpo config --reference` writes, and a test compares them. What a key means is said
once, below its field; units are those of its name.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from engine.key_descriptions import descriptions, summary
from engine.toml_values import toml_value

UNITS = {
    "_per_s": "a second",
    "_s": "seconds",
    "_mib": "MiB",
    "_kib": "KiB",
    "_bytes": "bytes",
    "_tokens": "tokens",
    "_chars": "characters",
}
"""By the end of a key's name; the first that fits."""

PREFACE = """\
# Configuration reference

Written by `arpo config --reference` from the types that decode a configuration; a test compares it with them.

A configuration is a TOML file of sections. Behind it on the command line stand overrides, `section.key=value`, and
further files that are laid over it, from left to right. `section.key=` removes what a file says, so that the default
holds; `section.key=null` unsets a key whose default is a value. An element of an array goes by its number:
`sft.0.steps=100`. `arpo config CONFIG ...` shows what comes of it all, and which file or override said so.

A *section* is a table; where it has several kinds, its `kind` chooses one. Unknown keys and values out of range are
refused with the path of the key.
"""


def reference(config: type[msgspec.Struct]) -> str:
    """The whole document, for the Struct at its root."""
    root = inspect.type_info(config)
    assert isinstance(root, inspect.StructType)
    return "\n".join([PREFACE, *_Reference().section(root, path="")])


class _Reference:
    """One pass over the Structs: each is described where it is met first, and later ones refer to that place."""

    def __init__(self) -> None:
        self._home: dict[type, str] = {}

    def section(self, struct: inspect.StructType, *, path: str) -> Iterator[str]:
        """Lines about the keys of one Struct, then about the sections in it."""
        yield from ("| key | type | default | meaning |", "|---|---|---|---|")
        inner: list[tuple[str, Sequence[inspect.StructType]]] = []
        if len(struct.cls.__struct_fields__) < len(struct.fields):
            raise TypeError(f"{struct.cls.__name__} renames its fields")
        for field in struct.fields:
            key = f"{path}.{field.name}" if path else field.name
            kinds = _structs(field.type)
            is_new = bool(kinds) and kinds[0].cls not in self._home
            if is_new:
                is_array = isinstance(_bare(field.type), inspect.VarTupleType)
                home = f"{key}.N" if is_array else key
                self._home |= {kind.cls: home for kind in kinds}
                inner.append((home, kinds))
            yield self._row(struct.cls, field, key=key, kinds=kinds, is_new=is_new)
        yield ""
        for home, kinds in inner:
            yield from self._described(home, kinds)

    def _described(self, path: str, kinds: Sequence[inspect.StructType]) -> Iterator[str]:
        """A heading for a section, and one more for each of its kinds."""
        yield from (f"## `{path}`", "")
        if kinds[0].tag is None:
            (only,) = kinds
            yield from (summary(only.cls), "", *self.section(only, path=path))
            return
        yield from (f"One of {', '.join(f'`{kind.tag}`' for kind in kinds)}.", "")
        for kind in kinds:
            yield from (f"### `{path}`: `{kind.tag}`", "", summary(kind.cls), "")
            if kind.fields:
                yield from self.section(kind, path=path)

    def _row(
        self, owner: type, field: inspect.Field, *, key: str, kinds: Sequence[inspect.StructType], is_new: bool
    ) -> str:
        kind_of_value = described_type(field)
        if kinds:
            home = self._home[kinds[0].cls]
            target = f"[{'below' if is_new else f'as `{home}`'}](#{anchor(f'`{home}`')})"
            kind_of_value = f"{kind_of_value}, {target}"
        meaning = meaning_of(owner, field)
        cells = [f"`{key}`", kind_of_value, described_default(field), meaning.replace("|", "\\|")]
        return f"| {' | '.join(cells)} |"


def meaning_of(owner: type, field: inspect.Field) -> str:
    """What is written below the field, or else the first sentence of its section's docstring; raises `TypeError` where
    there is neither."""
    said = descriptions(owner).get(field.name)
    if said is None:
        kinds = _structs(field.type)
        if len(kinds) != 1:
            raise TypeError(f"{owner.__name__}.{field.name} has no description")
        said = summary(kinds[0].cls)
    return said


def anchor(heading: str) -> str:
    """The link of a heading, as GitHub makes it.

    >>> anchor("`learner.loss`: `ppo`")
    'learnerloss-ppo'
    """
    kept = (c for c in heading.lower() if c.isalnum() or c in " -_")
    return "".join(kept).replace(" ", "-")


def described_type(field: inspect.Field) -> str:
    """What may stand behind the key, with its unit."""
    text = _type(field.type)
    unit = next((unit for end, unit in UNITS.items() if field.name.endswith(end)), None)
    if unit is not None and isinstance(_bare(field.type), inspect.IntType | inspect.FloatType):
        text = f"{text}, {unit}"
    can_be_unset = isinstance(field.type, inspect.UnionType) and field.type.includes_none
    return f"{text}, or `null`" if can_be_unset and _default(field) is not None else text


def described_default(field: inspect.Field) -> str:
    """The value that holds where nothing is said."""
    if field.required:
        return "required"
    value = _default(field)
    if value is None:
        return "unset"
    if isinstance(value, msgspec.Struct):
        said = _said(value)
        return f"`{toml_value(said)}`" if said else ""
    return f"`{toml_value(msgspec.to_builtins(value))}`"


def _said(value: msgspec.Struct) -> dict[str, Any]:
    """Its kind, and what is not the default of its own type."""
    tag = value.__struct_config__.tag
    said: dict[str, Any] = {} if tag is None else {"kind": tag}
    struct = inspect.type_info(type(value))
    assert isinstance(struct, inspect.StructType)
    changed = [field.name for field in struct.fields if getattr(value, field.name) != _default(field)]
    return said | {name: msgspec.to_builtins(getattr(value, name)) for name in changed}


def _default(field: inspect.Field) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _bare(kind: inspect.Type) -> inspect.Type:
    """Without None and metadata, where one type is left."""
    if isinstance(kind, inspect.Metadata):
        return _bare(kind.type)
    if isinstance(kind, inspect.UnionType):
        left = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return _bare(left[0]) if len(left) == 1 else inspect.UnionType(tuple(left))
    return kind


def _structs(kind: inspect.Type) -> Sequence[inspect.StructType]:
    """The sections that may stand there; none for a value."""
    match _bare(kind):
        case inspect.StructType() as struct:
            return (struct,)
        case inspect.UnionType(types=types):
            return tuple(one for one in types if isinstance(one, inspect.StructType))
        case inspect.VarTupleType(item_type=item):
            return _structs(item)
        case _:
            return ()


def _type(kind: inspect.Type) -> str:
    kind = _bare(kind)
    match kind:
        case inspect.StructType():
            return "section"
        case inspect.UnionType(types=types):
            if all(isinstance(one, inspect.StructType) for one in types):
                return "section with a `kind`"
            return " or ".join(_type(one) for one in types)
        case inspect.VarTupleType(item_type=item):
            return "array of sections" if _structs(item) else f"list: {_type(item)}"
        case inspect.TupleType(item_types=items):
            return f"list of {len(items)}: {_type(items[0])}"
        case inspect.DictType(value_type=value):
            return f"table: {_type(value)}"
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{toml_value(value)}`" for value in values)
        case inspect.IntType():
            return f"integer{_range(kind)}"
        case inspect.FloatType():
            return f"number{_range(kind)}"
        case inspect.StrType():
            return "text" if not kind.min_length else "text, not empty"
        case inspect.BoolType():
            return "true or false"
        case inspect.AnyType():
            return "anything"
        case _:
            raise TypeError(f"the reference has no word for {kind}")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    """The bounds in words.

    >>> _range(inspect.IntType(ge=0, le=3)), _range(inspect.FloatType(gt=0))
    (' >= 0, <= 3', ' > 0')
    """
    bounds = ((">", kind.gt), (">=", kind.ge), ("<", kind.lt), ("<=", kind.le))
    return ",".join(f" {sign} {bound:g}" for sign, bound in bounds if bound is not None)

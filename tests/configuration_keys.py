"""Which keys a configuration may have, asked of the types by a walk of their own."""

from msgspec import inspect

from actors.config import Config


def is_key(path: str, *, of: type = Config) -> bool:
    """Whether `a.b` is a key or a section of some configuration; numbers are places of arrays."""
    places = [inspect.type_info(of)]
    for name in path.split("."):
        if name.isdecimal() or any(isinstance(place, inspect.DictType) for place in places):
            continue
        structs = [place for place in places if isinstance(place, inspect.StructType)]
        if name == "kind" and any(struct.tag for struct in structs):
            places = []
            continue
        found = [field.type for struct in structs for field in struct.fields if field.name == name]
        if not found:
            return False
        places = [one for kind in found for one in _inside(kind)]
    return True


def _inside(kind: inspect.Type) -> list[inspect.Type]:
    match kind:
        case inspect.UnionType(types=types):
            return [one for inner in types for one in _inside(inner)]
        case inspect.VarTupleType(item_type=item):
            return _inside(item)
        case inspect.Metadata(type=inner):
            return _inside(inner)
        case _:
            return [kind]

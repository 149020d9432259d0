"""Settings by their dotted keys, such as train.batch_size: of a schema (a dataclass) and of a configuration."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, NamedTuple


def setting_types(schema: type) -> Mapping[str, type]:
    """Return the type of every setting of `schema` by its dotted key."""
    return _keys(schema).types


def group_names(schema: type) -> frozenset[str]:
    """Return the dotted keys of all groups of settings of `schema`."""
    return _keys(schema).groups


def setting_hints(schema: type) -> Mapping[str, Any]:
    """Return the type hint of every setting of `schema` by its dotted key."""
    return _keys(schema).hints


class _Keys(NamedTuple):
    """What is known of a schema by dotted key."""

    hints: Mapping[str, Any]
    types: Mapping[str, type]
    groups: frozenset[str]


@cache
def _keys(schema: type) -> _Keys:
    hints = dict(_walk_hints(schema, ""))
    parents = [key.split(".")[:-1] for key in hints]
    return _Keys(
        hints,
        types={key: runtime_type(hint) for key, hint in hints.items()},
        groups=frozenset(".".join(parts[:depth]) for parts in parents for depth in range(1, len(parts) + 1)),
    )


def _walk_hints(schema: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            yield from _walk_hints(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def runtime_type(hint: Any) -> type:
    """Return the class that a type hint stands for: int for int | None, list for list[str], and so on."""
    if isinstance(hint, UnionType):
        hint = next(member for member in typing.get_args(hint) if member is not type(None))
    result: type = typing.get_origin(hint) or hint
    return result


def mapping_of(key: str, schema: type) -> str | None:
    """Return the setting, a mapping, that has an entry of this dotted key, or with it inside; None if there is none."""
    types, parts = setting_types(schema), key.split(".")
    parents = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
    return next((parent for parent in parents if types.get(parent) is dict), None)


def entry_type(hint: Any) -> type | None:
    """Return the dataclass that each entry of a mapping is, given its type hint; None if entries are single values."""
    arguments = typing.get_args(hint)
    has_settings = typing.get_origin(hint) is dict and dataclasses.is_dataclass(arguments[1])
    return typing.cast(type, arguments[1]) if has_settings else None


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested dataclass as {dotted key: value}."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[f"{prefix}{field.name}"] = _without_defaults(value)
    return flat


def _without_defaults(value: Any) -> Any:
    """Return a mapping of dataclasses as one of what each has that is no default; anything else as it is."""
    if not isinstance(value, dict) or not all(map(dataclasses.is_dataclass, value.values())):
        return value
    entries = {name: (flatten(entry), flatten(type(entry)())) for name, entry in value.items()}
    return {
        name: {key: own[key] for key in own if own[key] != default[key]} for name, (own, default) in entries.items()
    }


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted key: value} as nested groups."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[name] = value
    return tree

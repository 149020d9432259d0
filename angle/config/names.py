"""Settings by their dotted names: group.name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any


def setting_types(schema: type) -> dict[str, type]:
    """Return the type of every setting of `schema` by its dotted name."""
    return {name: plain_type(hint) for name, hint in type_hints(schema).items()}


def group_names(schema: type) -> set[str]:
    """Return the dotted names of all groups of settings of `schema`."""
    parts = [name.split(".")[:-1] for name in setting_types(schema)]
    return {".".join(path[:end]) for path in parts for end in range(1, len(path) + 1)}


@cache
def type_hints(schema: type) -> dict[str, Any]:
    return dict(_walk_hints(schema, ""))


def _walk_hints(schema: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            yield from _walk_hints(typing.cast(type, hint), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", hint


def plain_type(hint: Any) -> type:
    """Return int for int | None, list for list[str], and so on."""
    if isinstance(hint, UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    plain: type = typing.get_origin(hint) or hint
    return plain


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested dataclass as {dotted name: value}."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[f"{prefix}{item.name}"] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted name: value} as nested groups."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[name] = value
    return tree

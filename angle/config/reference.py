"""What a schema says of each setting, for --help, the documentation and editors: meaning, default, allowed values."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from angle.config.build import TYPE_NAMES
from angle.config.keys import entry_type, runtime_type
from angle.config.overrides import format_value

#: First line of a preset whose settings are of several groups.
GLOBAL_PRESET = "# @package _global_"


class Setting(NamedTuple):
    """One setting of a schema."""

    key: str
    """Its dotted key."""
    hint: Any
    """Its type, as it is annotated."""
    default: Any
    bounds: Mapping[str, Any]
    """What `angle.config.values.declared` was told of it."""
    meaning: str
    """The docstring below its field."""

    @property
    def allowed(self) -> str:
        """What it may be, such as "a whole number of at least 1, or null"."""
        kind = TYPE_NAMES.get(runtime_type(self.hint), "a text or a list of texts")
        if choices := self.bounds.get("choices"):
            items = "a list of these" if runtime_type(self.hint) is list else "one of these"
            kind = f"{items}: {', '.join(map(str, choices))}{', or an index' if 'or_index' in self.bounds else ''}"
        for name, words in (("at_least", "of at least"), ("above", "above")):
            if name in self.bounds:
                kind += f" {words} {self.bounds[name]:g}"
        return f"{kind}, or null" if self.optional else kind

    @property
    def optional(self) -> bool:
        """Whether it may be null."""
        return self.hint is Any or type(None) in typing.get_args(self.hint)


class Group(NamedTuple):
    """Settings that stand together, in one dataclass."""

    keys: tuple[str, ...]
    """Its dotted key; of groups with the same settings, all; "" for the settings of a script itself."""
    meanings: tuple[str, ...]
    """What is said of each of `keys`."""
    settings: tuple[Setting, ...]
    """With the first of `keys`."""


def groups_of(schema: type) -> list[Group]:
    """Return the groups of a schema, in the order in which they are defined. Groups that look alike are one."""
    merged: dict[tuple[Any, ...], Group] = {}
    for group in _walk(schema, schema, "", entries=True):
        fields = [(setting.key.rpartition(".")[2], setting.meaning) for setting in group.settings]
        same = merged.get(tuple(fields)) if "." in group.keys[0] else None
        if same is not None:
            group = Group(same.keys + group.keys, same.meanings + group.meanings, same.settings)
        merged[tuple(fields)] = group
    return list(merged.values())


def settings_of(schema: type, *, entries: bool = False) -> list[Setting]:
    """Return all settings of a schema; with `entries` also those of a mapping's entries, which are called NAME."""
    return [setting for group in _walk(schema, schema, "", entries=entries) for setting in group.settings]


def presets_of_settings(conf: Path) -> dict[str, list[tuple[str, Any]]]:
    """Return, by setting, the presets in a folder that set it, as group=option, and to what."""
    import yaml

    found: dict[str, list[tuple[str, Any]]] = {}
    for path in sorted(conf.glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
        settings.pop("defaults", None)
        is_global = text.startswith(GLOBAL_PRESET)
        for key, value in _leaves(settings if is_global else {path.parent.name: settings}):
            found.setdefault(key, []).append((f"{path.parent.name}={path.stem}", value))
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what nested mappings hold, by dotted key; the last mapping of a branch stands for itself too."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
            if not any(isinstance(item, Mapping) for item in value.values()):
                yield f"{prefix}{name}", value
        else:
            yield f"{prefix}{name}", value


def _walk(schema: type, default: Any, prefix: str, *, entries: bool) -> Iterator[Group]:
    """Yield the groups below a dataclass: first its own settings, then its groups, each with what is said of it."""
    default = default() if isinstance(default, type) else default
    hints, meanings = typing.get_type_hints(schema), _docstrings(schema)
    own = []
    for item in dataclasses.fields(schema):
        if not dataclasses.is_dataclass(hints[item.name]):
            value = getattr(default, item.name)
            own.append(Setting(f"{prefix}{item.name}", hints[item.name], value, item.metadata, meanings[item.name]))
    key = prefix.rstrip(".")
    if own:
        yield Group((key,), (_first_paragraph(schema),), tuple(own))
    for item in dataclasses.fields(schema):
        entry = entry_type(hints[item.name]) if entries else None
        if entry is not None:
            yield from _walk(entry, entry, f"{prefix}{item.name}.NAME.", entries=True)
        if dataclasses.is_dataclass(hints[item.name]):
            nested = typing.cast(type, hints[item.name])
            for group in _walk(nested, getattr(default, item.name), f"{prefix}{item.name}.", entries=entries):
                said = meanings.get(item.name) if group.keys == (f"{prefix}{item.name}",) else None
                yield group._replace(meanings=(said,)) if said else group


def _first_paragraph(schema: type) -> str:
    return " ".join((schema.__doc__ or "").split("\n\n")[0].split())


@cache
def _docstrings(schema: type) -> dict[str, str]:
    """Return the text below each field of a dataclass, and of those that it extends."""
    if not dataclasses.is_dataclass(schema):
        return {}
    (body,) = ast.parse(inspect.getsource(schema)).body
    assert isinstance(body, ast.ClassDef)
    inherited = {name: text for base in schema.__bases__ for name, text in _docstrings(base).items()}
    return inherited | {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def written(value: Any) -> str:
    """Return a value as it is typed, a whole number without a decimal point."""
    return f"{value:g}" if isinstance(value, float) else format_value(value)

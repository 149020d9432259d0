"""The settings as a JSON schema, by which editors complete and check presets and saved configurations."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from angle.config.keys import entry_type, runtime_type
from angle.config.reference import Setting, settings_of

#: What a preset has beside settings: Hydra's own.
HYDRA = {
    "defaults": {"type": "array", "description": "Presets that this one chooses, as - override /group: option."},
    "hydra": {"type": "object", "description": "Settings of Hydra."},
}
#: What YAML has for a value of each type; a number is taken as a text too, such as model.revision: 1e5.
TYPES: dict[Any, list[str]] = {
    int: ["integer"],
    float: ["number"],
    bool: ["boolean"],
    str: ["string", "number"],
    list: ["array"],
    dict: ["object"],
}
#: Settings that are a text or a list of texts have no type of their own.
TEXTS = ["string", "number", "array"]


def json_schema(schema: type) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a preset that sets some of a script's settings, or of all of them."""
    settings = {setting.key: setting for setting in settings_of(schema, entries=True)}
    root = _group(schema, "", settings)
    root["properties"] |= HYDRA
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Settings of train.py", **root}


def _group(schema: type, prefix: str, settings: dict[str, Setting]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        hint, key = hints[item.name], f"{prefix}{item.name}"
        nested = dataclasses.is_dataclass(hint)
        properties[item.name] = _group(hint, f"{key}.", settings) if nested else _value(settings[key])
        if (entry := entry_type(hint)) is not None:
            properties[item.name]["additionalProperties"] = _group(entry, f"{key}.NAME.", settings)
    described = {"description": " ".join((schema.__doc__ or "").split("\n\n")[0].split())}
    return described | {"type": "object", "additionalProperties": False, "properties": properties}


def _value(setting: Setting) -> dict[str, Any]:
    """Return the schema of a setting's values."""
    kind = runtime_type(setting.hint)
    types = TYPES.get(kind, TEXTS) + (["null"] if setting.optional else [])
    value: dict[str, Any] = {"description": setting.meaning, "default": setting.default}
    choices = [*setting.bounds.get("choices", ()), *([None] if setting.optional else [])]
    if setting.bounds.get("choices") and kind is list:
        value |= {"type": types, "items": {"enum": list(setting.bounds["choices"])}}
    elif setting.bounds.get("or_index"):
        value["anyOf"] = [{"enum": choices}, {"type": "integer", "minimum": 0}]
    elif setting.bounds.get("choices"):
        value["enum"] = choices
    else:
        value["type"] = types
    if "at_least" in setting.bounds:
        value["minimum"] = setting.bounds["at_least"]
    if "above" in setting.bounds:
        value["exclusiveMinimum"] = setting.bounds["above"]
    return value

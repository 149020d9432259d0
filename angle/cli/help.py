"""The settings of a script as --help shows them: a line each, and in full those that are asked for."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from angle.config.reference import Group, Setting, groups_of, presets_of_settings, written

#: Columns of a terminal, and of a name with its value at most, before what it means.
WIDTH, NAME_WIDTH = 80, 30

#: How lines begin with which a preset speaks to Hydra and to editors.
FOR_PROGRAMS = ("@package", "yaml-language-server")


def overview(schema: type, values: Mapping[str, Any]) -> str:
    """Return a line for every setting of a schema: its name, its value and the beginning of what it means."""
    return "\n\n".join("\n".join([_title(group), *_lines(group, values)]) for group in groups_of(schema))


def details(schema: type, topics: Sequence[str], values: Mapping[str, Any], conf: Path) -> str:
    """Return all that is known of the settings that `topics` name, by themselves or by their groups."""
    presets = presets_of_settings(conf)
    texts = [_options(conf / topic) for topic in topics if (conf / topic).is_dir()]
    for group in groups_of(schema):
        for key in group.keys:
            settings = [_of(key, setting) for setting in group.settings]
            asked = [one for one in settings if any(f"{one.key}.".startswith(f"{topic}.") for topic in topics)]
            texts += [_detail(setting, values, presets.get(setting.key, [])) for setting in asked]
    return "\n\n".join(texts)


def _options(folder: Path) -> str:
    """Return the presets of a group, each with the first sentence of the comment that its file begins with."""
    lines = {}
    for path in sorted(folder.glob("*.yaml")):
        comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        text = " ".join(line for line in comments if not line.startswith(FOR_PROGRAMS))
        lines[f"{folder.name}={path.stem}"] = re.split(r"(?<=\.) ", text)[0]
    width = max(map(len, lines)) + 2
    return "\n".join(
        textwrap.fill(f"{name:{width}}{text}", WIDTH, subsequent_indent=" " * width) for name, text in lines.items()
    )


def _of(group: str, setting: Setting) -> Setting:
    """Return a setting as that of another group which has the same ones."""
    return setting._replace(key=f"{group}.{setting.key.rpartition('.')[2]}".lstrip("."))


def _value(setting: Setting, values: Mapping[str, Any]) -> Any:
    """Return a setting's value; its default if it is one of a mapping's entries, of which there may be none."""
    return values.get(setting.key, setting.default)


def _title(group: Group) -> str:
    if group.keys == ("",):
        return textwrap.fill(group.meanings[0], WIDTH)
    titles = zip(group.keys, group.meanings, strict=True)
    return "\n".join(textwrap.fill(f"{key}: {meaning}", WIDTH) for key, meaning in titles)


def _lines(group: Group, values: Mapping[str, Any]) -> list[str]:
    """Return the lines of a group's settings; for what several groups share, no value where they differ."""
    names = []
    for setting in group.settings:
        name = setting.key.rpartition(".")[2]
        shown = {written(_value(_of(key, setting), values)) for key in group.keys}
        names.append(f"{name}={shown.pop()}" if len(shown) == 1 else name)
    width = min(NAME_WIDTH, max(map(len, names))) + 4
    lines = []
    for name, setting in zip(names, group.settings, strict=True):
        meaning = _beginning(setting.meaning, WIDTH - width)
        lines += [f"  {name}", " " * width + meaning] if len(name) > width - 4 else [f"  {name:{width - 2}}{meaning}"]
    return lines


def _beginning(meaning: str, width: int) -> str:
    """Return as much of a meaning as fits into a line: whole sentences or clauses, else words."""
    ends = [end.start() for end in re.finditer(r"[.;](?= |$)", meaning) if end.start() <= width]
    return meaning[: ends[-1]] if ends else textwrap.shorten(meaning, width, placeholder=" ...")


def _detail(setting: Setting, values: Mapping[str, Any], presets: Sequence[tuple[str, Any]]) -> str:
    allowed = f"It is {setting.allowed}"
    value = written(_value(setting, values))
    if value != written(setting.default):
        allowed += f"; by default {written(setting.default)}"
    texts = [setting.meaning, f"{allowed}."]
    if presets:
        texts.append(f"Set by {', '.join(f'{preset} ({written(value)})' for preset, value in presets)}.")
    wrapped = [textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ") for text in texts]
    return "\n".join([f"{setting.key}={value}", *wrapped])

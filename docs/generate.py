"""Write what the schema says of the settings: docs/settings.md and conf/schema.json. python docs/generate.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from angle.config import ConvertConfig, EmbedConfig, EvaluateConfig, MineConfig, TrainConfig  # noqa: E402
from angle.config.json_schema import json_schema  # noqa: E402
from angle.config.reference import Group, Setting, groups_of, presets_of_settings, written  # noqa: E402

INTRODUCTION = """# Every setting

<!-- Made from angle/config/ and conf/ by: python docs/generate.py -->

A setting is typed as `group.name=value`, a preset as `group=option`. `null` means: decided by the model or the data;
the run's `config.yaml` then has what was decided. `python train.py --help` has these in short, `python train.py --help
loss` all of a group or a setting, and `--cfg job` prints the values of a command line.
"""


def settings_page() -> str:
    """Return docs/settings.md."""
    known = {setting.key: setting for group in groups_of(TrainConfig) for setting in group.settings}
    text = [INTRODUCTION, "## Training\n\n`python train.py` has all of these.\n"]
    text += [_section(group) for group in groups_of(TrainConfig)]
    scripts = {
        "Evaluation": (EvaluateConfig, "evaluate.py"),
        "Conversion": (ConvertConfig, "convert.py"),
        "Mining": (MineConfig, "-m angle.mine"),
        "Embedding": (EmbedConfig, "-m angle.embed"),
    }
    for script, (schema, name) in scripts.items():
        shared = [group for group in groups_of(schema) if group.settings[0].key in known]
        own = [group for group in groups_of(schema) if group not in shared]
        names = " and ".join(f"[`{group.keys[0]}`](#{group.keys[0]})" for group in shared)
        text.append(f"## {script}\n\n`python {name}` has the groups {names} of training, and these.\n")
        text += [_section(group, heading=bool(group.keys[0])) for group in own]
    return "\n".join(text)


def _section(group: Group, *, heading: bool = True) -> str:
    """Return a group as a list of its settings."""
    lines = [f"### {', '.join(f'`{key}`' for key in group.keys)}\n"] if heading else []
    if len(group.keys) > 1:
        lines += [f"- `{key}`: {text}" for key, text in zip(group.keys, group.meanings, strict=True)]
        lines += ["", "Each of them has:"]
    elif heading:
        lines.append(group.meanings[0])
    return "\n".join([*lines, "", *(_item(setting, group) for setting in group.settings), ""])


def _item(setting: Setting, group: Group) -> str:
    name = setting.key.rpartition(".")[2]
    shared = len(group.keys) > 1
    default = "" if shared and name == "name_or_path" else f"={written(setting.default)}"
    allowed = f"{setting.allowed[0].upper()}{setting.allowed[1:]}"
    text = f"- **`{name if shared else setting.key}{default}`**: {setting.meaning} *{allowed}.*"
    presets = [f"`{preset}` (`{written(value)}`)" for key in group.keys for preset, value in _presets(key, name)]
    return _escaped(f"{text} Set by {', '.join(presets)}." if presets else text)


def _presets(group: str, name: str) -> Iterator[tuple[str, object]]:
    yield from PRESETS.get(f"{group}.{name}".lstrip("."), [])


def _escaped(text: str) -> str:
    """Return a text with an escape before what has another meaning outside of code, to HTML and in formulas."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "\\<").replace("$", "\\$") for part in parts[::2]]
    return "`".join(parts)


PRESETS = presets_of_settings(REPO / "conf")


def main() -> None:
    """Write the files."""
    (REPO / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")
    (REPO / "conf" / "schema.json").write_text(schema_text(), encoding="utf-8")


def schema_text() -> str:
    """Return conf/schema.json."""
    return json.dumps(json_schema(TrainConfig), indent=1) + "\n"


if __name__ == "__main__":
    main()

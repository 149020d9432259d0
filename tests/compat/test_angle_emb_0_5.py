"""The table of angle_emb's options: what angle_emb has, and what the documentation lists."""

from __future__ import annotations

from conftest import REPO
from reference_command import (
    OPTIONS,
    REFERENCE,
)

from angle.compat.angle_emb_0_6 import ANGLE_EMB_0_6


def test_options_are_those_of_angle_emb():
    assert len(REFERENCE) == len(OPTIONS) == 66
    for name, expected in REFERENCE.items():
        option = OPTIONS[name]
        assert option.type.__name__ == expected["type"], name
        assert option.default == expected["default"], name
        assert list(option.choices) == expected.get("choices", []), name
        assert option.required == expected.get("required", False), name


def test_the_options_are_documented():
    lines = (REPO / "docs" / "migrating.md").read_text().splitlines()
    expected = []
    later = [each for name, each in ANGLE_EMB_0_6.by_name.items() if each != OPTIONS.get(name)]
    for option in (*OPTIONS.values(), *later):
        default = "–" if option.default is None or option.is_flag else f"`{option.default}`"
        setting = f"`{option.setting}`" if option.setting else "–"
        expected.append(f"| `--{option.name}` | {default} | {setting} | {option.note} |".replace("|  |", "| |"))
    assert [line for line in lines if line.startswith("| `--")] == expected

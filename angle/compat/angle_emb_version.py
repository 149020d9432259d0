"""A version of angle_emb as one table: its names for settings, and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

#: Start of a note on an option that is accepted and ignored.
NO_EFFECT = "has no effect: "


@dataclass(frozen=True)
class Option:
    """An option of angle_emb's command, the setting that it sets, and its counterpart in Python."""

    name: str
    type: type
    default: Any
    help: str
    setting: str | None = None
    """The setting that it sets; None if it has no effect here, or is refused."""
    choices: tuple[int | str, ...] = ()
    to_setting: Callable[[Any], Any] | None = None
    """Converts the option's value to the setting's, where they differ."""
    requires: str | None = None
    """The option that must be on, or given, for this one to have an effect."""
    note: str = ""
    """How it differs from angle_emb, as the rest of a sentence that begins with the option."""
    required: bool = False
    default_applies: bool = True
    """Whether the default applies when the option is not given; false where that default was a defect."""
    python: str = ""
    """The same in Python, as owner.argument: an argument of `AnglE` or `fit`, or a key of an argument that is a
    mapping, such as trainer_kwargs.ese_kl_temperature."""
    python_default: Any = None
    """The setting's value in Python unless given; None: the schema's."""

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return self.default is False


@dataclass(frozen=True)
class AngleEmbVersion:
    """The names by which users of one version of angle_emb know the settings."""

    release: str
    """The release whose command and arguments these are."""
    options: Mapping[str, tuple[Option, ...]]
    """The options of the command, by heading of --help."""
    python_only: Mapping[str, str]
    """Arguments in Python without an option, as owner.argument -> setting."""
    renamed: Mapping[str, str]
    """Options and loss weights of earlier releases -> their names in this one."""
    always: Mapping[str, Any]
    """How it trains where it has no option, and this project trains otherwise, by setting."""

    @cached_property
    def by_name(self) -> dict[str, Option]:
        """The options by name."""
        return {option.name: option for options in self.options.values() for option in options}

    def python_settings(self, owner: str) -> dict[str, str]:
        """Return the settings by Python name: of the arguments of `owner`, or of its keys if it is a mapping."""
        both = {option.python: option.setting for option in self.by_name.values() if option.python and option.setting}
        arguments = (both | dict(self.python_only)).items()
        prefix = f"{owner}."
        return {path.removeprefix(prefix): setting for path, setting in arguments if path.startswith(prefix)}

    def python_defaults(self, owner: str) -> dict[str, Any]:
        """Return angle_emb's defaults in Python, by setting, where they are not left to the schema."""
        return {
            option.setting: option.python_default
            for option in self.by_name.values()
            if option.setting and option.python_default is not None and option.python.startswith(f"{owner}.")
        }

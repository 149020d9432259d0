"""Data sources that a command line names in place of a preset's: what the preset says of its own is left out.

The columns, the split and the label_map of a preset are about the rows that it names, and mean nothing for others.
Hydra merges a command line's words into what the presets make, so this has to happen in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from angle.config import NamedSourceConfig
from angle.data.purposes import DEFAULT_SPLITS, setting_name

#: The setting that has several sources of training rows by their names.
SOURCES = "data.train.sources"


@cache
def let_words_replace_sources() -> None:
    """Let Hydra forget a preset's source, with all that belongs to it, before it applies a word that names another."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    apply = ConfigLoaderImpl._apply_overrides_to_config

    def replace_and_apply(overrides: Sequence[Any], presets: Any) -> None:
        for purpose in DEFAULT_SPLITS:
            _forget_if_replaced(setting_name(purpose), overrides, presets)
        _add_named_sources(overrides, presets)
        apply(list(overrides), presets)

    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(replace_and_apply)  # type: ignore[method-assign, assignment]


def _forget_if_replaced(setting: str, overrides: Sequence[Any], presets: Any) -> None:
    """Set a source, such as data.train, to the schema's defaults if the overrides name another one than the presets."""
    from omegaconf import OmegaConf

    source = OmegaConf.select(presets, setting)
    if source is None:  # a script without data
        return
    named = source.name_or_path
    for override in overrides:
        if override.is_delete():
            continue
        value = override.value()
        if override.key_or_group == f"{setting}.name_or_path":
            named = value
        elif override.key_or_group == setting and isinstance(value, Mapping):
            named = value.get("name_or_path", named)
        elif override.key_or_group.startswith(SOURCES) and SOURCES.startswith(setting) and not source.sources:
            named = None  # several in place of one
    if named != source.name_or_path:
        OmegaConf.update(presets, setting, OmegaConf.structured(OmegaConf.get_type(source)), merge=False)


def _add_named_sources(overrides: Sequence[Any], presets: Any) -> None:
    """Add the sources that words set something of, such as data.train.sources.nli.weight=2, so that they exist."""
    from omegaconf import OmegaConf

    for override in overrides:
        setting, _, rest = override.key_or_group.partition(f"{SOURCES}.")
        name = rest.partition(".")[0]
        if (
            not setting
            and name
            and not override.is_delete()
            and name not in OmegaConf.select(presets, SOURCES, default=(name,))
        ):
            OmegaConf.update(presets, f"{SOURCES}.{name}", OmegaConf.structured(NamedSourceConfig), force_add=True)

"""Where the parts of a model are: its weights, its adapter, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.modeling import adapters
from angle.modeling.description import SelfDescription, adapter_base, describe, locate, read_json


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are."""

    base: str
    revision: str | None
    """The base's revision on the hub."""
    adapter: str | None
    adapter_revision: str | None
    is_adapter: bool
    """Whether the adapter was given as the model itself, not beside it."""
    saved: adapters.SavedAdapters | None

    def describe(self) -> SelfDescription:
        """Return what the adapter says about itself or, if it says nothing, what the base says."""
        said = describe(self.adapter, self.adapter_revision) if self.adapter else SelfDescription()
        return describe(self.base, self.revision) if said == SelfDescription() else said

    def tokenizer(self, model: ModelConfig) -> tuple[ModelConfig, str]:
        """Return the settings and place of the tokenizer: beside the adapter, if one was saved there."""
        try:
            beside = self.adapter and read_json(self.adapter, "tokenizer_config.json", self.adapter_revision)
        except OSError:
            beside = None
        place, revision = (self.adapter, self.adapter_revision) if beside else (self.base, self.revision)
        return replace(model, revision=revision), place or self.base


def find_parts(model: ModelConfig) -> Parts:
    """Return where the model's parts are, with adapters downloaded if need be.

    Raises:
        ConfigError: a place is not valid, or an adapter is put on an adapter.

    """
    name = locate(model.name_or_path)
    base = adapter_base(name, model.revision)
    if base is None and model.adapter is None:
        return Parts(name, model.revision, None, None, False, None)
    if base is None:
        adapter = locate(str(model.adapter), "model.adapter")
        return Parts(name, model.revision, adapter, None, False, adapters.find_adapters(adapter, "model.adapter"))
    if model.adapter is not None:
        raise ConfigError(
            f"model.adapter={model.adapter} cannot work with model.name_or_path={name}, which is an adapter itself: "
            f"give its base, {base[0]}, as model.name_or_path."
        )
    return Parts(*base, name, model.revision, True, adapters.find_adapters(name, "model.name_or_path", model.revision))

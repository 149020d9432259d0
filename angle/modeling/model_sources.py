"""Where the weights, the adapter and the tokenizer of a model come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from angle.config import ModelConfig
from angle.errors import ConfigError
from angle.files import MANIFEST
from angle.modeling.adapters import SavedAdapters, find_adapters
from angle.modeling.embedding_config import EmbeddingConfig, read_embedding_config
from angle.modeling.locations import (
    EMBEDDING_CONFIG_FILE,
    adapter_base,
    check_unchanged,
    locate_model,
    read_json,
)
from angle.modeling.sentence_transformers_files import transformer_folder
from angle.modeling.weight_files import ADAPTER_WEIGHT_FILES, fingerprint, weight_files


@dataclass(frozen=True)
class ModelSources:
    """Names and revisions, on the hub or on this machine, of the parts of a model."""

    base: str
    """Where the weights are, without any adapter."""
    base_revision: str | None
    adapter: str | None = None
    adapter_revision: str | None = None
    name_is_adapter: bool = False
    """Whether model.name_or_path is the adapter, which then was not given as model.adapter."""
    saved_adapters: SavedAdapters | None = None
    settings: str | None = None
    """Where the settings saved with the base are, if not beside its weights."""

    def read_embedding_config(self, *, needs_pooling: bool = True) -> EmbeddingConfig:
        """Return the settings saved with the adapter or, if there are none, with the base.

        Args:
            needs_pooling: as in `angle.modeling.embedding_config.read_embedding_config`.

        """
        if self.adapter is not None:
            embedding_config = read_embedding_config(self.adapter, self.adapter_revision, needs_pooling=needs_pooling)
            if embedding_config != EmbeddingConfig():
                return embedding_config
        return read_embedding_config(self.settings or self.base, self.base_revision, needs_pooling=needs_pooling)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the weights, once they are loaded: of the base and, if there are any, of adapters."""
        adapters = self.saved_adapters.folders if self.saved_adapters else ()
        files = {
            "base": weight_files(self.base, self.base_revision),
            "adapters": [Path(folder, name) for folder in adapters for name in ADAPTER_WEIGHT_FILES],
        }
        existing = {part: [path for path in paths if path.is_file()] for part, paths in files.items()}
        return {part: fingerprint(paths) for part, paths in existing.items() if paths}

    def check_base(self, embedding_config: EmbeddingConfig) -> None:
        """Check that an adapter is put on the weights that it was trained on, as the settings saved with it say.

        Raises:
            ConfigError: it was trained on others.

        """
        expected, found = embedding_config.base_fingerprint, self.fingerprints.get("base", "none")
        if self.adapter is not None and expected not in (None, found):
            raise ConfigError(
                f"{self.adapter} was trained on other weights than those that are in {self.base} now, so its "
                f"embeddings would be others (fingerprint {found:.12}, in training {expected:.12}): put the old "
                f"weights back, or, to use it on these all the same, remove base_fingerprint from its "
                f"{EMBEDDING_CONFIG_FILE}, and its {MANIFEST}."
            )

    def absolute_base(self) -> str:
        """Return where the weights are, for a file that is read from any working directory."""
        return str(Path(self.base).resolve()) if Path(self.base).exists() else self.base

    def find_tokenizer(self) -> tuple[str, str | None]:
        """Return the name and the revision of the tokenizer: beside the adapter, if one was saved there."""
        if self.adapter is not None:
            try:
                if read_json(self.adapter, "tokenizer_config.json", self.adapter_revision):
                    return self.adapter, self.adapter_revision
            except OSError:
                pass
        return self.base, self.base_revision


def resolve_sources(model: ModelConfig) -> ModelSources:
    """Return where the parts of a model are, with adapters downloaded if need be.

    Raises:
        ConfigError: a name leads nowhere or to a damaged model, or an adapter is put on an adapter.

    """
    name = locate_model(model.name_or_path)
    check_unchanged(name)
    base = adapter_base(name, model.revision)
    if base is None:
        plain = ModelSources(transformer_folder(name, model.revision), model.revision, settings=name)
        if model.adapter is None:
            return plain
        adapter = locate_model(model.adapter, "model.adapter")
        check_unchanged(adapter, "model.adapter")
        return replace(plain, adapter=adapter, saved_adapters=find_adapters(adapter, setting="model.adapter"))
    if model.adapter is not None:
        raise ConfigError(
            f"model.adapter={model.adapter} cannot work with model.name_or_path={name}, which is an adapter itself: "
            f"give its base, {base[0]}, as model.name_or_path."
        )
    return ModelSources(
        *base,
        adapter=name,
        adapter_revision=model.revision,
        name_is_adapter=True,
        saved_adapters=find_adapters(name, setting="model.name_or_path", revision=model.revision),
    )

"""What embeddings are made of: settings, a model and texts, and whether they are those of an earlier command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angle.config import EmbedConfig, LimitsConfig
from angle.config.build import build_config
from angle.config.resume import config_diff
from angle.data.texts import ID, TEXT, Survey, TextSource
from angle.errors import ConfigError, DataError
from angle.kernels.registry import INSTALLED
from angle.modeling.encoder import Encoder
from angle.modeling.tokenizer import TextTokenizer
from angle.terminal import labelled
from angle.versions import installed_versions


@dataclass(frozen=True)
class Inputs:
    """Everything that determines the embeddings."""

    config: EmbedConfig
    encoder: Encoder
    tokenizer: TextTokenizer
    """That of the texts' role."""
    texts: TextSource
    survey: Survey

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for embedding to go on."""
        kernels = self.encoder.kernels
        return {
            "settings": dataclasses.asdict(self._comparable_config()),
            "weights": self.encoder.fingerprints,
            "tokenizer": self.tokenizer.fingerprint,
            "texts": self.survey.fingerprint,
            "first_rows": self.survey.first_rows.tolist(),
            "kernels": None if kernels is None else list(kernels.selected),
        }

    def _comparable_config(self) -> EmbedConfig:
        """Return the settings without those that may change when embedding goes on."""
        return dataclasses.replace(self.config, output_dir=None, limits=LimitsConfig())

    def check_same(self, begun: dict[str, Any], folder: Path) -> None:
        """Raise ConfigError or DataError if `begun`, the identity of what a folder has a part of, is another."""
        config, now = self.config, self.identity()
        place = f"output_dir={folder} holds the first part of embeddings"
        changed = config_diff(build_config(begun["settings"], EmbedConfig), self._comparable_config())
        if changed:
            raise ConfigError(
                f"{place} with other settings ({'; '.join(changed)}): put them back, or give a new folder."
            )
        if any(begun[part] != now[part] for part in ("weights", "tokenizer")):
            raise ConfigError(
                f"{place} by other weights, or another tokenizer, of model.name_or_path={config.model.name_or_path}: "
                f"put the old ones back, or give a new folder."
            )
        if any(begun[part] != now[part] for part in ("texts", "first_rows")):
            raise DataError(
                f"{place} of other texts than {', '.join(config.rows.names())} has now: put the old ones back, or give "
                f"a new folder."
            )

    def describe(self) -> list[str]:
        """Return what is embedded, and how, in a few lines."""
        config, columns = self.config, self.texts.tables()[0].columns
        column = self.texts.source.columns.get(TEXT) or TEXT
        used = {TEXT, *self.texts.extra_columns, *((ID,) if self.texts.with_ids else ())}
        unused = ", ".join(name for name in columns if name not in used)
        return [
            labelled(
                "texts",
                f"{self.survey.num_rows:,} in column {column} of {', '.join(config.rows.names())}"
                f"{f'; not used: {unused}' if unused else ''}",
            ),
            labelled("model", f"{config.model.name_or_path}: {self.encoder.embedding_config}"),
            labelled("prompt", "none" if self.tokenizer.prompt is None else repr(self.tokenizer.prompt)),
        ]

    def record(self) -> dict[str, Any]:
        """Return what a stranger has to know of the embeddings."""
        config, encoder = self.config, self.encoder
        return {
            "texts": self.survey.num_rows,
            "dimensions": encoder.dimensions,
            "dtype": config.dtype,
            "unit_length": config.normalize or encoder.normalize,
            "role": config.role,
            "prompt": self.tokenizer.prompt,
            "model": {
                "name_or_path": config.model.name_or_path,
                "weights": encoder.fingerprints,
                "tokenizer": self.tokenizer.fingerprint,
                "settings": dataclasses.asdict(encoder.embedding_config),
            },
            "source": {
                "names": config.rows.names(),
                "columns": self.texts.source.columns,
                "fingerprint": self.survey.fingerprint,
            },
            "settings": dataclasses.asdict(config),
            "kernels": [name for name, state in encoder.kernel_status().items() if state == INSTALLED],
            "device": str(encoder.device),
            "versions": installed_versions(),
        }

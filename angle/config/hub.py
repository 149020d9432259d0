"""The Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from angle.config.licenses import LICENSES
from angle.config.values import check_fields, declared
from angle.errors import ConfigError, did_you_mean

#: The code of a language, with a region or a script; the hub takes the last two as well.
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
#: Name of a user or a repository on the Hugging Face hub.
HUB_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?", re.ASCII)


@dataclass
class HubConfig:
    """The Hugging Face hub. Its token comes from HF_TOKEN or `hf auth login`, and is never written anywhere."""

    push: bool = False
    """Whether to push the best model, or the final one if none was selected, once training is over."""
    model_id: str | None = None
    """The repository to push to: user/name."""
    private: bool = True
    """Whether a new repository is private."""
    timeout: float = declared(20.0, above=0)
    """Seconds to wait for an answer of the hub; a run goes on without it."""
    license: str | None = None
    """The model's licence, as the hub calls it: apache-2.0, mit, cc-by-4.0, other, ...; null: none is named."""
    language: Any = None
    """The code of the texts' language, such as en, or a list of codes; null: none is named."""
    samples: bool = False
    """Whether the model card shows three short training rows, which everybody may then read who may see the model."""

    def __post_init__(self) -> None:
        check_fields("hub", self)
        if self.license is not None and self.license not in LICENSES:
            hint = did_you_mean(self.license.lower().replace(" ", "-"), LICENSES) or "."
            raise ConfigError(
                f"hub.license={self.license} is not known to the hub{hint} Choose for example apache-2.0, mit, "
                f"cc-by-4.0, cc-by-nc-4.0 or, for one without an identifier, other."
            )
        for code in self.languages():
            if LANGUAGE.fullmatch(code) is None:
                raise ConfigError(
                    f"hub.language={code} is no code of a language: write for example en, de, zh, pt-BR, "
                    f"multilingual, or a list such as [en,de]."
                )
        if self.push and self.model_id is None:
            raise ConfigError("hub.push=true needs hub.model_id: add for example hub.model_id=user/my-encoder.")
        if self.model_id is None:
            return
        if not self.push:
            raise ConfigError(f"hub.model_id={self.model_id} has no effect alone: add hub.push=true, or leave it out.")
        check_model_id(self.model_id)

    def languages(self) -> list[str]:
        """Return the codes of the languages as a list, empty if there are none."""
        if self.language is None:
            return []
        codes = self.language if isinstance(self.language, list | tuple) else [self.language]
        return ["no" if code is False else str(code) for code in codes]  # YAML reads Norwegian as false


def check_model_id(model_id: str) -> None:
    """Raise ConfigError if the hub would accept no repository of this name."""
    names = model_id.split("/")
    if len(names) != 2 or not all(map(HUB_NAME.fullmatch, names)) or len(model_id) > 96:
        raise ConfigError(
            f"hub.model_id={model_id} cannot work: write user/name, at most 96 letters, digits, -, _ and ., "
            f"without - or . at an end, -- or .. inside, or .git at the end."
        )

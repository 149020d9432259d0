"""The Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from angle.config.values import check_at_least
from angle.errors import ConfigError

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
    timeout: float = 20.0
    """Seconds to wait for an answer of the hub; a run goes on without it."""

    def __post_init__(self) -> None:
        check_at_least("hub.timeout", self.timeout, 0, above=True)
        if self.push and self.model_id is None:
            raise ConfigError("hub.push=true needs hub.model_id: add for example hub.model_id=user/my-encoder.")
        if self.model_id is None:
            return
        if not self.push:
            raise ConfigError(f"hub.model_id={self.model_id} has no effect alone: add hub.push=true, or leave it out.")
        check_model_id(self.model_id)


def check_model_id(model_id: str) -> None:
    """Raise ConfigError if the hub would accept no repository of this name."""
    names = model_id.split("/")
    if len(names) != 2 or not all(map(HUB_NAME.fullmatch, names)) or len(model_id) > 96:
        raise ConfigError(
            f"hub.model_id={model_id} cannot work: write user/name, at most 96 letters, digits, -, _ and ., "
            f"without - or . at an end, -- or .. inside, or .git at the end."
        )

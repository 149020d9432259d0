"""Low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass

from angle.config.values import check_fields, declared, refuse_fields_while_off
from angle.errors import ConfigError


@dataclass
class LoraConfig:
    """Low-rank adapters: train a few added weights and keep the model's own frozen."""

    enabled: bool = False
    """Whether to train adapters instead of the model's own weights."""
    r: int = declared(32, at_least=1)
    """Rank."""
    alpha: int = declared(64, at_least=1)
    """Scale: the adapter's output is multiplied by alpha / r."""
    dropout: float = 0.1
    """Dropout on the adapter's input."""
    target_modules: list[str] | None = None
    """Names of the linear layers that get adapters; null: all of them."""

    def __post_init__(self) -> None:
        refuse_fields_while_off("lora", self, "lora=r16")
        check_fields("lora", self)
        if self.target_modules == []:
            raise ConfigError("lora.target_modules=[] adapts nothing: name layers, or leave it out for all.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout:g} cannot work: it must be at least 0 and below 1.")

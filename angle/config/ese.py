"""Espresso embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from angle.config.values import check_fields, declared, refuse_fields_while_off
from angle.errors import ConfigError


@dataclass
class EseConfig:
    """Espresso embeddings (ESE): usable embeddings from every layer, and from its first dimensions only."""

    enabled: bool = False
    """Whether to train every layer, rather than only the last one at full width."""
    compression_size: int = declared(128, at_least=2)
    """Number of leading dimensions that are trained to work without the others; must be even."""
    kl_temperature: float = declared(1.0, at_least=0)
    """Temperature of the divergence from the compressed embeddings; 0: only their squared error."""
    pca: bool = True
    """Whether the first dimensions learn to be a compression of all of them."""
    compat: bool = False
    """Sum over the layers as angle_emb does: with the embedding layer, without the second-to-last layer."""

    def __post_init__(self) -> None:
        refuse_fields_while_off("ese", self, "ese=on")
        check_fields("ese", self)
        if self.compression_size % 2:
            raise ConfigError(
                f"ese.compression_size={self.compression_size} cannot work: the angle loss splits an embedding into a "
                f"real and an imaginary half; choose an even number."
            )
        if not self.pca and self.kl_temperature != EseConfig.kl_temperature:
            raise ConfigError(
                f"ese.kl_temperature={self.kl_temperature:g} has no effect with ese.pca=false, which leaves out the "
                f"divergence: leave one out."
            )

"""Bidirectional decoder layers."""

from __future__ import annotations

import os
from dataclasses import dataclass

from angle.config.values import check_fields, declared, refuse_fields_while_off
from angle.errors import ConfigError

#: Environment variable from which angle_emb reads the first bidirectional layer.
START_INDEX_VARIABLE = "BiLLM_START_INDEX"


@dataclass
class BillmConfig:
    """BiLLM: decoder layers with bidirectional attention."""

    enabled: bool = False
    """Whether these settings choose the layers; false: those that the model itself specifies, otherwise none."""
    start_index: int | None = declared(None, at_least=-1)
    """First bidirectional layer, counted from 0; -1 or the number of layers: none; null: BiLLM_START_INDEX, or 0."""
    last_layers: int | None = declared(None, at_least=1)
    """Make the last `last_layers` layers bidirectional; an alternative to start_index."""
    model_class: str | None = None
    """Class that the decoder must have, such as LlamaForCausalLM; null: any."""

    def __post_init__(self) -> None:
        refuse_fields_while_off("billm", self, "billm=all")
        check_fields("billm", self)
        if self.start_index is not None and self.last_layers is not None:
            raise ConfigError(
                f"billm.start_index={self.start_index} and billm.last_layers={self.last_layers} both say where to "
                f"begin: leave one out."
            )

    def first_layer(self, layers: int) -> int | None:
        """Return the first bidirectional layer of a model with `layers` layers, or None if there is none.

        Raises:
            ConfigError: the model has no such layer, or BiLLM_START_INDEX contradicts these settings.

        """
        start = self.start_index
        env_value = os.environ.get(START_INDEX_VARIABLE)
        if env_value is not None:
            is_number = env_value.lstrip("-").isdigit()
            if not is_number or self.last_layers is not None or start not in (None, int(env_value)):
                raise ConfigError(
                    f"{START_INDEX_VARIABLE}={env_value} contradicts billm.start_index={start} and billm.last_layers="
                    f"{self.last_layers}: unset it, or give a whole number there alone."
                )
            start = int(env_value)
        if self.last_layers is not None:
            if self.last_layers > layers:
                raise ConfigError(f"billm.last_layers={self.last_layers} cannot work: the model has {layers} layers.")
            return layers - self.last_layers
        start = 0 if start is None else start
        if start > layers:
            raise ConfigError(
                f"billm.start_index={start} cannot work: the model has the layers 0 to {layers - 1}; give one of them, "
                f"or -1 for none."
            )
        return start if 0 <= start < layers else None

"""LoRA: fresh adapters to train, and saved ones merged into the weights."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from angle.config import LoraConfig
from angle.errors import ConfigError
from angle.modeling.quantization import quiet_bitsandbytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_adapters(backbone: PreTrainedModel, config: LoraConfig, base_name: str) -> Any:
    """Return the model with fresh adapters on it; only they are trainable.

    Raises:
        ConfigError: target modules that match no linear layer.

    """
    quiet_bitsandbytes()
    import peft
    import torch

    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    }
    unknown = set(config.target_modules or ()) - linear
    if unknown:
        raise ConfigError(
            f"lora.target_modules={config.target_modules} names {', '.join(sorted(unknown))}, which "
            f"this model does not have. Its linear layers are: {', '.join(sorted(linear))}."
        )
    backbone.name_or_path = base_name  # peft writes it into the adapter's folder
    adapter = peft.LoraConfig(
        task_type=peft.TaskType.FEATURE_EXTRACTION,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(config.target_modules or linear),
        exclude_modules=r".*pooler.*" if hasattr(backbone, "pooler") else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to change
        return peft.get_peft_model(backbone, adapter)


def merge_adapters(backbone: PreTrainedModel, folder: str) -> Any:
    """Return the model with the adapter saved in `folder` merged into its weights."""
    quiet_bitsandbytes()
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(backbone, folder).merge_and_unload()

"""LoRA: which weights are trained, and how adapters are loaded and merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from angle.config import LoraConfig
from angle.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_adapters(backbone: PreTrainedModel, config: LoraConfig, base_name: str) -> Any:
    """Return the model with fresh adapters on it; only they are trainable.

    Raises:
        ConfigError: target modules that match no linear layer.

    """
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
    backbone.config._name_or_path = base_name  # peft writes it into the adapter's folder
    return peft.get_peft_model(
        backbone,
        peft.LoraConfig(
            task_type=peft.TaskType.FEATURE_EXTRACTION,
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=sorted(config.target_modules or linear),
            exclude_modules=r".*pooler.*",
        ),
    )


def load_adapters(backbone: PreTrainedModel, folder: str, *, merge: bool = True) -> Any:
    """Return the model with a saved adapter, merged into the weights or, to go on training, on top of them."""
    import peft

    model = peft.PeftModel.from_pretrained(backbone, folder, is_trainable=not merge)
    return model.merge_and_unload() if merge else model


def is_adapted(model: Any) -> bool:
    """Return whether the model carries adapters."""
    return hasattr(model, "peft_config")

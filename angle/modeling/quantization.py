"""Quantised weights: frozen in 4 or 8 bits while adapters on them are trained, and dequantised for merging."""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from angle.quiet import quiet_loggers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantization_kwargs(load_kbit: int | None, device: torch.device) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` loads linear layers quantised to 4 or 8 bits on one device.

    4 bits means NF4 with double quantisation (Dettmers et al., QLoRA, arXiv:2305.14314), 8 means LLM.int8 (Dettmers et
    al., arXiv:2208.07339). A process loads its model on its own device, and never spreads it over several.
    """
    if load_kbit is None:
        return {}
    from transformers import BitsAndBytesConfig

    import_bitsandbytes()
    config = BitsAndBytesConfig(
        load_in_4bit=load_kbit == 4,
        load_in_8bit=load_kbit == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(device),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def import_bitsandbytes() -> ModuleType:
    """Return bitsandbytes, imported without its reports on kernels that nothing here needs; peft imports it too."""
    with quiet_loggers("bitsandbytes"):
        import bitsandbytes

        module: ModuleType = bitsandbytes
        return module


def keep_weight_layout(model: PreTrainedModel) -> None:
    """Keep 4-bit layers from repacking their weights in evaluation mode, for the rest of their lives.

    On CPUs with bfloat16 instructions, the first call in evaluation mode would do so in place; the backward pass still
    reads the weights in their old order, and every later gradient is wrong.
    """
    layer_type = import_bitsandbytes().nn.Linear4bit
    for module in model.modules():
        if isinstance(module, layer_type):
            module.support_avx512bf16_for_cpu = False


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which products with 4-bit weights are computed: bfloat16 where the hardware has it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


def count_weights(parameter: torch.nn.Parameter) -> int:
    """Return how many weights a parameter stands for; an element holds two 4-bit weights."""
    quant_state = getattr(parameter, "quant_state", None)
    return parameter.numel() if quant_state is None else math.prod(quant_state.shape)


def process_device() -> torch.device:
    """Return the device of this process."""
    from accelerate import PartialState

    return torch.device(PartialState().device)


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with plain float32 weights, exactly those that its quantised weights stand for.

    Adapters are merged into these: merging into quantised weights would round them away, and merging into the original
    weights would ignore the quantisation error that training made up for.
    """
    dequantized: PreTrainedModel = model.dequantize()
    return dequantized.float()

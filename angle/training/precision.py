"""The precision that the available devices compute in."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from angle.distributed.process_group import has_gpu


def half_precision() -> str:
    """Return the train.mixed_precision closest to fp16 on this machine.

    It is fp16 itself on a GPU, bf16 on a CPU with instructions for it, and otherwise "no".
    """
    if has_gpu():
        return "fp16"
    # torch 2.13 reports them; with an older one, assume none, as without them bf16 is slower than float32.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "no"

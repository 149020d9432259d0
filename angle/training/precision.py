"""What the devices that are here compute in."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from angle.processes import has_gpu


def half_precision() -> str:
    """Return the train.mixed_precision that comes nearest to fp16 here: itself on a GPU, bf16 on a CPU that has
    instructions for it, else "no".
    """
    if has_gpu():
        return "fp16"
    # torch 2.13 tells; an older one is taken to have none, for without instructions bf16 is slower than float32.
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "no"

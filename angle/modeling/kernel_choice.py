"""Which kernels a model gets: those in `model.kernels`, or else all but those that are no faster on this machine.

Chance must not choose, for another kernel rounds differently: a measurement is made once and kept in the cache, and a
run keeps its choice, as `model.kernels` in its `config.yaml`, and in words in its `run.json`.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from angle.cache import cache_folder, load_array, save_array
from angle.distributed.process_group import best_device
from angle.kernels.kernel import Kernel, Shapes
from angle.kernels.registry import KERNELS, NOT_REQUESTED

#: How much faster than torch a kernel must be to replace it. Two measurements of the same differ by 1 or 2 %, and 3 %
#: of a step's matrix products are about 2 % of the step: with less to gain than that, torch's own operation stays.
MIN_GAIN = 1.03

#: Given a model and `model.kernels`, returns the kernels to skip, each with the reason.
KernelSelector = Callable[[nn.Module, Sequence[str] | None], Mapping[str, str]]


def kernels_to_skip(model: nn.Module, requested: Sequence[str] | None) -> dict[str, str]:
    """Return the kernels to skip, each with the reason.

    Args:
        model: the model, before any kernel is installed.
        requested: names of the kernels to install wherever they apply; None for all but those with no gain here.

    """
    if requested is not None:
        return {kernel.name: NOT_REQUESTED for kernel in KERNELS if kernel.name not in requested}
    reasons_to_skip = {}
    for kernel in KERNELS:
        gain = measured_gain(kernel, model)
        if gain is not None and gain < MIN_GAIN:
            reasons_to_skip[kernel.name] = f"{'slower' if gain < 1 else 'no faster'} here: {gain:.2f}"
    return reasons_to_skip


def kernels_to_skip_from_main_process(model: nn.Module, requested: Sequence[str] | None) -> dict[str, str]:
    """Return what `kernels_to_skip` returns on the main process. Every process must call this.

    Measurements differ between processes, and so would their results if each decided for itself.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    reasons_to_skip = kernels_to_skip(model, requested) if PartialState().is_main_process else {}
    result: dict[str, str] = broadcast_object_list([reasons_to_skip])[0]
    return result


def measured_gain(kernel: Kernel, model: nn.Module) -> float | None:
    """Return torch's time over a kernel's on this machine, from the cache if it was measured before.

    None if the kernel is always faster, or does not apply to the model or to the device that models are moved to.
    """
    if kernel.benchmark is None or best_device().type not in kernel.devices:
        return None
    shapes = kernel.benchmark.shapes(model)
    if not shapes:
        return None
    path = _cache_path(kernel.name, shapes)
    cached = load_array(path)
    if cached is not None and cached.shape == (1,):
        return float(cached[0])
    gain = kernel.benchmark.gain(shapes)
    save_array(path, np.array([gain]), replace=False)
    kept = load_array(path)  # the first measurement counts, if several processes made one at once
    return gain if kept is None else float(kept[0])


def _cache_path(name: str, shapes: Shapes) -> Path:
    """Return the cache file for everything that a measurement depends on."""
    machine = (_processor(), os.cpu_count(), torch.get_num_threads(), torch.__version__, torch.__config__.show())
    digest = hashlib.sha256(repr((name, machine, shapes)).encode()).hexdigest()[:32]
    return cache_folder("kernels") / f"{name}-{digest}.npy"


def _processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith("model name")), platform.processor())

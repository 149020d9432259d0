"""The registry of kernels: which a model has, and why it has no others.

A kernel is a faster implementation of an operation of torch, with the same result but for rounding (and, with dropout,
the random numbers drawn). Each can be switched off with `model.kernels`, so that a wrong number can be bisected. A new
kernel is a module of this package with a `KERNEL`, and its name in `angle.kernels.KERNEL_NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from torch import nn

from angle.kernels import KERNEL_NAMES
from angle.kernels.kernel import Install, Kernel
from angle.kernels.mixin import NO_MODULE

INSTALLED, NOT_REQUESTED = "installed", "disabled by model.kernels"

#: All kernels, in the order of installation.
KERNELS: tuple[Kernel, ...] = tuple(import_module(f"angle.kernels.{name}").KERNEL for name in KERNEL_NAMES)


@dataclass(frozen=True)
class InstalledKernels:
    """Which kernels a model has."""

    reasons: Mapping[str, str | None]
    """By name in the registry's order: None if installed, otherwise why not."""
    selected: tuple[str, ...]
    """Those that were to be installed wherever they apply."""

    def has(self, name: str) -> bool:
        """Return whether a kernel is installed; elsewhere than on its devices, it does what torch does."""
        return self.reasons[name] is None

    def status(self, device_type: str) -> dict[str, str]:
        """Return for each kernel "installed", or why it does nothing on a type of device."""
        return {
            kernel.name: (self.reasons[kernel.name] or INSTALLED)
            if device_type in kernel.devices
            else f"not on {device_type}"
            for kernel in KERNELS
        }


def describe_kernels(status: Mapping[str, str]) -> str:
    """Return in one line which kernels are used, and which are not although they could be."""
    in_use = ", ".join(name for name, state in status.items() if state == INSTALLED)
    not_worth_mentioning = (INSTALLED, NOT_REQUESTED, NO_MODULE)
    left_out = [
        f"{name} {state}"
        for name, state in status.items()
        if state not in not_worth_mentioning and not state.startswith("not on ")
    ]
    return "; ".join([in_use or "none", *left_out])


def install_kernels(model: nn.Module, to_skip: Mapping[str, str], install_packing: Install) -> InstalledKernels:
    """Install the kernels in a model.

    Args:
        model: the model, with any adapters.
        to_skip: the kernels to leave out, each with the reason.
        install_packing: installs the kernel `packing`, which has to be tested on the model.

    """
    selected = tuple(kernel for kernel in KERNELS if kernel.name not in to_skip)
    reasons = {kernel.name: (kernel.install or install_packing)(model) for kernel in selected}
    return InstalledKernels(
        {kernel.name: to_skip.get(kernel.name) or reasons[kernel.name] for kernel in KERNELS},
        tuple(kernel.name for kernel in selected),
    )

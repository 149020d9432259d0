"""The registry of kernels: what each replaces, where it applies, and the order in which they are installed.

A kernel is a faster implementation of an operation of torch, with the same result but for rounding (and, with dropout,
the random numbers drawn). Each can be switched off with `model.kernels`, so that a wrong number can be bisected. A new
kernel is a module of this package, an entry here, and its name in `angle.config.model.KERNEL_NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from angle.kernels.allocator import install_allocator
from angle.kernels.attention.packed import install_blocks
from angle.kernels.dropout import install_dropout
from angle.kernels.linear import LinearShapes, gain_over_torch, install_linear, linear_shapes
from angle.kernels.lora import install_lora
from angle.kernels.mixin import NO_MODULE
from angle.kernels.rms_norm import install_rms_norm

#: Installs a kernel in a model; returns None if it did, otherwise why not.
Install = Callable[[nn.Module], str | None]

INSTALLED, NOT_REQUESTED = "installed", "disabled by model.kernels"


@dataclass(frozen=True)
class Benchmark:
    """How a kernel whose gain depends on the machine is compared with torch."""

    shapes: Callable[[nn.Module], LinearShapes]
    """Returns what of a model the gain depends on; empty if the kernel does not apply."""
    gain: Callable[[LinearShapes], float]
    """Returns torch's time over the kernel's, measured here."""


@dataclass(frozen=True)
class Kernel:
    """One kernel."""

    name: str
    summary: str
    devices: tuple[str, ...]
    """Device types on which it is used; elsewhere an installed kernel does what torch does."""
    modules: str
    """The modules it is installed in."""
    install: Install | None
    """None if the caller of `install_kernels` provides it."""
    benchmark: Benchmark | None = None
    """None if it is always faster."""


#: All kernels, in the order of installation: blocks build on packing.
KERNELS = (
    Kernel(
        "packing",
        "Runs the texts of a batch as one row without padding.",
        ("cpu", "cuda"),
        "models whose packed rows give the same as padded ones when tested",
        None,
    ),
    Kernel(
        "blocks",
        "Attends with dropout in a few blocks of texts of similar length, instead of once per length.",
        ("cpu",),
        "attention over packed rows",
        install_blocks,
    ),
    Kernel(
        "lora",
        "Computes a layer's low-rank adapter as one operation that saves less for the backward pass.",
        ("cpu", "cuda"),
        "peft's adapters on linear layers",
        install_lora,
    ),
    Kernel("dropout", "Draws dropout from 16 random bits an element.", ("cpu",), "nn.Dropout", install_dropout),
    Kernel(
        "linear",
        "Multiplies float32 matrices by oneDNN instead of the BLAS in torch's wheels.",
        ("cpu",),
        "nn.Linear",
        install_linear,
        Benchmark(linear_shapes, gain_over_torch),
    ),
    Kernel(
        "rms_norm",
        "Computes an RMS norm in one kernel instead of eight.",
        ("cuda",),
        "modules that compute torch's RMS norm when tested",
        install_rms_norm,
    ),
    Kernel(
        "allocator",
        "Keeps freed memory for reuse while a model is trained that has a gradient of over 32 MiB.",
        ("cpu",),
        "the process, with glibc",
        install_allocator,
    ),
)


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

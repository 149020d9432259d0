"""What a kernel is: how it is installed in a model, and how it is compared with torch where its gain varies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

#: Installs a kernel in a model; returns None if it did, otherwise why not.
Install = Callable[[nn.Module], str | None]

#: What the time of a kernel depends on, such as the shapes of a model's layers.
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Benchmark:
    """How a kernel whose gain depends on the machine is compared with torch."""

    shapes: Callable[[nn.Module], Shapes]
    """Returns what of a model the gain depends on; empty if the kernel does not apply."""
    gain: Callable[[Shapes], float]
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

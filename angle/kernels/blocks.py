"""Attention with dropout in blocks, over packed rows: see `angle.kernels.attention.blocks`."""

from angle.kernels.attention.packed import install_blocks
from angle.kernels.kernel import Kernel

KERNEL = Kernel(
    "blocks",
    "Attends with dropout in a few blocks of texts of similar length, instead of once per length.",
    ("cpu",),
    "attention over packed rows",
    install_blocks,
)

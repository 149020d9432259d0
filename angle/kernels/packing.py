"""Packed rows: installed by the caller of `install_kernels`, because it has to be tried on the model."""

from angle.kernels.kernel import Kernel

KERNEL = Kernel(
    "packing",
    "Runs the texts of a batch as one row without padding.",
    ("cpu", "cuda"),
    "models whose packed rows give the same as padded ones when tested",
    None,
)

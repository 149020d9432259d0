"""Replacements of operations of torch, each by itself: nothing here knows the project beyond its data structures."""

#: All kernels, by their modules in this package, in the order of installation: blocks build on packing.
KERNEL_NAMES = ("packing", "blocks", "lora", "dropout", "linear", "rms_norm", "allocator")

"""Attention over packed rows on a GPU: all texts of a row in one call.

A call for each group of texts of equal length, as on a CPU, would be hundreds of small kernels per layer.
Variable-length kernels take offsets that say where each text begins. Where no such kernel fits, only attention pads the
texts and removes the padding again; the rest of a layer still sees none.
"""

from __future__ import annotations

import inspect
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from angle.kernels.attention.blocks import LengthGroups, group_equal_lengths
from angle.kernels.attention.spec import AttentionSpec
from angle.kernels.operators import missing_operator
from angle.structures import Lengths, to_device

#: Backends: torch's kernel, that of the package flash-attn, and torch's sdpa on a padded batch.
VARLEN, FLASH, PADDED = "varlen_attn", "flash_attn", "padded"

#: What both kernels require: one of these dtypes, and a GPU of at least this compute capability.
HALF_DTYPES, AMPERE = (torch.float16, torch.bfloat16), (8, 0)


#: All backends but cuDNN's, which builds a plan for every new shape, and each batch has a new one.
SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class PackedTexts:
    """Where the texts of a packed row (T,) lie.

    What an attention call needs is computed when the first layer asks for it, and kept for the others. Everything is
    derived from lengths on the host, so nothing waits for the device.
    """

    def __init__(self, lengths: Lengths, device: torch.device) -> None:
        """Take the lengths (N,) of the texts, and where attention will run."""
        self.count, self.max_seqlen = len(lengths), int(lengths.max())
        self._lengths, self._device = lengths, device
        self._masks: dict[tuple[bool, int | None], Tensor | None] = {}

    @cached_property
    def length_groups(self) -> LengthGroups:
        """Number and length of the texts in each group of texts of equal length."""
        return group_equal_lengths(self._lengths)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """(N + 1,) int32: text n is tokens cu_seqlens[n]:cu_seqlens[n + 1]."""
        return to_device(np.concatenate([[0], self._lengths.cumsum()]).astype(np.int32), self._device)

    @cached_property
    def padded_indices(self) -> Tensor:
        """(T,): each token's index in the flattened padded batch (N, L), whose rows begin with their texts."""
        starts = self._lengths.cumsum() - self._lengths
        row_starts = np.arange(self.count) * self.max_seqlen
        return to_device(np.arange(self._lengths.sum()) + np.repeat(row_starts - starts, self._lengths), self._device)

    def mask(self, spec: AttentionSpec) -> Tensor | None:
        """Return the attention mask of the padded batch: (N, 1, L, L), or what broadcasts to it.

        None to attend to everything or, if causal, to all that comes before: padding comes last, so no token would
        attend to it.
        """
        key = spec.causal, spec.window
        if key not in self._masks:
            self._masks[key] = self._mask(spec)
        return self._masks[key]

    def _mask(self, spec: AttentionSpec) -> Tensor | None:
        if spec.window is None and (spec.causal or self._lengths.min() == self.max_seqlen):
            return None
        is_token = to_device(np.arange(self.max_seqlen) < self._lengths[:, None], self._device)
        if spec.window is None:
            return is_token[:, None, None]
        visible = spec.attention_mask(self.max_seqlen, self._device)
        if spec.causal:
            return visible[None, None]
        # Padding attends to the padding near it: a softmax over nothing would be NaN.
        return (visible & (is_token[:, None] == is_token[:, :, None]))[:, None]


def choose_backend(
    device: str,
    dtype: torch.dtype,
    dropout: float,
    head_dim: int,
    capability: tuple[int, int],
    available: frozenset[str],
) -> str:
    """Return how to compute attention: VARLEN, FLASH or PADDED.

    Args:
        device: type of the device.
        dtype: type of queries, keys and values.
        dropout: probability of setting a weight to 0; flash-attn has it as an argument, torch's varlen_attn does not.
        head_dim: head dimension.
        capability: the GPU's compute capability.
        available: which of VARLEN and FLASH are installed.

    """
    if device != "cuda" or dtype not in HALF_DTYPES or capability < AMPERE or head_dim % 8 or head_dim > 256:
        return PADDED
    if head_dim > 192 and (
        head_dim <= 224 or dropout
    ):  # consumer GPUs have too little shared memory for the backward pass
        return PADDED
    if FLASH in available and (dropout or VARLEN not in available):
        return FLASH
    return VARLEN if VARLEN in available else PADDED


@cache
def available_backends() -> frozenset[str]:
    """Return which of the kernels VARLEN and FLASH are installed."""
    has_operator = missing_operator("aten._flash_attention_forward") is None
    backends = {VARLEN} if has_operator and torch.backends.cuda.is_flash_attention_available() else set()
    try:
        from flash_attn import flash_attn_varlen_func  # noqa: F401
    except ImportError:  # none, or one that was built for another torch
        return frozenset(backends)
    return frozenset(backends | {FLASH})


@cache
def compute_capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a device, (0, 0) if it has none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def attend_texts(query: Tensor, key: Tensor, value: Tensor, texts: PackedTexts, spec: AttentionSpec) -> Tensor:
    """Attend within each text of a packed row, and return (1, T, H, d).

    Args:
        query: (1, H, T, d).
        key: (1, G, T, d), where H is a multiple of G.
        value: (1, G, T, d).
        texts: where the texts lie.
        spec: which tokens attend to which, with a window shorter than the longest text or none.

    """
    # Under autocast, rotated queries and keys are float32 beside bfloat16 values, and quantised layers return float32.
    dtype, device = value.dtype, value.device.type
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    backend = choose_backend(
        q.device.type, dtype, spec.dropout, q.shape[-1], compute_capability(q.device), available_backends()
    )
    if backend == PADDED:
        return _attend_padded(q, k, v, texts, spec)[None]
    return call_backend(backend, q, k, v, texts, spec)[None]


def call_backend(backend: str, q: Tensor, k: Tensor, v: Tensor, texts: PackedTexts, spec: AttentionSpec) -> Tensor:
    """Return (T, H, d), computed by the kernel VARLEN or FLASH.

    Args:
        backend: VARLEN or FLASH.
        q: (T, H, d).
        k: (T, G, d).
        v: (T, G, d).
        texts: where they lie.
        spec: which tokens attend to which, and the dropout.

    """
    seqlen_args = (texts.cu_seqlens, texts.cu_seqlens, texts.max_seqlen, texts.max_seqlen)
    if backend == FLASH:
        from flash_attn import flash_attn_varlen_func

        flash_output: Tensor = flash_attn_varlen_func(
            q,
            k,
            v,
            *seqlen_args,
            dropout_p=spec.dropout,
            softmax_scale=spec.scaling,
            causal=spec.causal,
            window_size=spec.window_size,
        )
        return flash_output
    if spec.dropout:
        return flash_with_dropout(q, *_repeat_kv(q, k, v), texts, spec)
    from torch.nn.attention.varlen import varlen_attn  # imported where it is used: it registers operators

    options: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11
            k, v = _repeat_kv(q, k, v)
    output = varlen_attn(q, k, v, *seqlen_args, scale=spec.scaling, window_size=spec.window_size, **options)
    assert isinstance(output, Tensor)  # further outputs are not requested
    return output


def flash_with_dropout(q: Tensor, k: Tensor, v: Tensor, texts: PackedTexts, spec: AttentionSpec) -> Tensor:
    """Return (T, H, d) for q, k and v (T, H, d) by the operator below `varlen_attn`, which fixes its dropout at 0."""
    window_left, window_right = spec.window_size
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        texts.cu_seqlens,
        texts.cu_seqlens,
        texts.max_seqlen,
        texts.max_seqlen,
        spec.dropout,
        spec.causal and spec.window is None,
        False,
        scale=spec.scaling,
        window_size_left=window_left,
        window_size_right=window_right,
    )[0]
    return out


def _attend_padded(q: Tensor, k: Tensor, v: Tensor, texts: PackedTexts, spec: AttentionSpec) -> Tensor:
    """Return (T, H, d) for q (T, H, d), k and v (T, G, d), computed with padding."""
    k, v = _repeat_kv(q, k, v)  # with fewer key heads, and a mask or in float32, CUDA has only the slowest path
    mask = texts.mask(spec)
    with sdpa_kernel(SDPA_BACKENDS):
        out = scaled_dot_product_attention(
            _pad(q, texts),
            _pad(k, texts),
            _pad(v, texts),
            attn_mask=mask,
            dropout_p=spec.dropout,
            is_causal=spec.causal and mask is None,
            scale=spec.scaling,
        )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, texts.padded_indices).to(v.dtype)


def _pad(tensor: Tensor, texts: PackedTexts) -> Tensor:
    """Return (T, H, d) as (N, H, L, d), with zeros after each text.

    Scattered, not gathered by an index that repeats some token for the padding: the backward pass of such a gather
    would sum over all the repeats.
    """
    padded = tensor.new_zeros(texts.count * texts.max_seqlen, *tensor.shape[1:]).index_copy_(
        0, texts.padded_indices, tensor
    )
    return padded.view(texts.count, texts.max_seqlen, *tensor.shape[1:]).transpose(1, 2)


def _repeat_kv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return k and v (T, H, d) with as many heads as q (T, H, d)."""
    times = q.shape[1] // k.shape[1]
    return (k, v) if times == 1 else (k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1))

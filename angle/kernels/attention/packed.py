"""The attention function of packed rows, in the form in which transformers calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from angle.kernels.attention.blocks import LengthGroups, attend_in_blocks
from angle.kernels.attention.spec import AttentionSpec
from angle.kernels.attention.varlen import PackedTexts, attend_texts
from angle.kernels.operators import missing_operator

#: Names of the attention functions in transformers' registry; the second one attends in blocks where there is dropout.
PACKED, PACKED_IN_BLOCKS = "angle_packed", "angle_packed_in_blocks"
#: Arguments of some attention functions that this one does not implement: capped scores, biases, sinks.
UNSUPPORTED_ARGUMENTS = ("softcap", "position_bias", "s_aux")
#: Where attention is called once per group of texts of equal length. Elsewhere, many small calls cost more than some
#: padding in attention.
ATTENDS_BY_LENGTH_GROUP = ("cpu",)


class NotPackableError(Exception):
    """An architecture whose attention needs what packed execution does not provide."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    packed_texts: PackedTexts | None = None,
    *,
    use_blocks: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each text of a packed row if `packed_texts` is given; else as transformers' sdpa does.

    Args:
        module: the attention layer, whose attribute `is_causal` holds unless the argument is given.
        query: (1, H, T, d).
        key: (1, G, T, d), where H is a multiple of G.
        value: (1, G, T, d).
        attention_mask: the mask of padded rows.
        scaling: factor applied to the scores; None for 1 / sqrt(d).
        dropout: probability with which an attention weight is set to 0.
        is_causal: whether a token attends only to itself and to those before it.
        sliding_window: tokens at this distance or more are masked.
        packed_texts: where the texts of a packed row lie.
        use_blocks: whether to use the kernel `blocks` on CPUs where there is dropout.
        kwargs: what else transformers passes on.

    Returns:
        (1, T, H, d), and no weights.

    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if any(kwargs.get(name) is not None for name in UNSUPPORTED_ARGUMENTS):
        raise NotPackableError
    if packed_texts is None:
        sdpa_output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return sdpa_output
    if attention_mask is not None and attention_mask.numel() > 1:  # the model's own, such as a bias that it learns
        raise NotPackableError
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    spec = AttentionSpec(causal, sliding_window, scaling, dropout).within(packed_texts.max_seqlen)
    if query.device.type not in ATTENDS_BY_LENGTH_GROUP:
        return attend_texts(query, key, value, packed_texts, spec), None
    attend_groups = attend_in_blocks if use_blocks and 0 < dropout < 1 else attend_by_length_group
    return attend_groups(query, key, value, packed_texts.length_groups, spec), None


def _attend_in_blocks(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Do what `attend` does, in blocks."""
    return attend(*args, use_blocks=True, **kwargs)


def set_packed_attention(model: Any) -> None:
    """Let a model of transformers attend by `attend`."""
    _set_attention(model, PACKED, attend)


def install_blocks(model: Any) -> str | None:
    """Let packed rows attend in blocks where there is dropout; return why not if the model runs no packed rows."""
    if model.config._attn_implementation not in (PACKED, PACKED_IN_BLOCKS):
        return "no packed rows"
    if (reason := missing_operator("aten._softmax_backward_data")) is not None:
        return reason
    _set_attention(model, PACKED_IN_BLOCKS, _attend_in_blocks)
    return None


def _set_attention(model: Any, name: str, function: Callable[..., tuple[Tensor, None]]) -> None:
    """Register an attention function, which is called between compiled graphs, and let a model use it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, torch.compiler.disable(function))  # type: ignore[no-untyped-call]
    AttentionMaskInterface.register(name, packed_mask)
    model.set_attn_implementation(name)


def attend_by_length_group(
    query: Tensor, key: Tensor, value: Tensor, length_groups: LengthGroups, spec: AttentionSpec
) -> Tensor:
    """Return (1, T, H, d) as `attend_in_blocks` does, by one call of torch's attention per length group."""
    dtype = compute_dtype = value.dtype  # under autocast, rotated queries and keys are float32 beside bfloat16 values
    if value.device.type == "cpu" and dtype != torch.float64:
        compute_dtype = torch.float32  # the CPU's kernels for short texts are twice as fast in it
    query, key, value = query.to(compute_dtype), key.to(compute_dtype), value.to(compute_dtype)
    sizes = [count * length for count, length in length_groups]
    # One split per tensor: the backward pass of a slice would fill a full-length tensor with zeros for every group.
    parts = zip(*(torch.split(tensor[0].transpose(0, 1), sizes) for tensor in (query, key, value)), strict=True)
    attended = []
    with torch.autocast(query.device.type, enabled=False):
        for (count, length), group in zip(length_groups, parts, strict=True):
            q, k, v = (part.view(count, length, *part.shape[1:]).transpose(1, 2) for part in group)
            mask = None if spec.within(length).window is None else spec.attention_mask(length, q.device)
            out = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=spec.dropout,
                is_causal=spec.causal and mask is None,
                scale=spec.scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)[None].to(dtype)


def packed_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return sdpa's mask for padded rows, none for packed ones."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None:
        return None
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    return mask

"""Packed execution: the tokens of all texts in one row, none of them padding.

Everything but attention works on single tokens, so texts can be concatenated into a row (1, T), each with its own
positions. Attention needs to know which tokens belong together. On a CPU, texts are sorted by length, and one call
without any mask handles all texts of equal length (see `angle.kernels.attention`). This information travels in the
model's keyword arguments, so that layers that are rerun in the backward pass (gradient checkpointing) see their own
batch. Where layers are compiled, attention is called between their graphs, because the calls it makes
differ from batch to batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from angle.kernels.attention.packed import ATTENDS_BY_LENGTH_GROUP, PACKED, PACKED_IN_BLOCKS, set_packed_attention
from angle.kernels.attention.varlen import PackedTexts
from angle.kernels.linear import round_up_rows
from angle.modeling.layers import StateSelector, last_hidden_states
from angle.structures import Lengths, to_device

#: Number of buckets of similar length that a padded batch is split into. CPUs pay for padding, GPUs for launches.
NUM_LENGTH_BUCKETS = {"cpu": 4}


def run_packed(
    backbone: Any, ids: Tensor, lengths: Lengths, select: StateSelector = last_hidden_states, **options: bool
) -> list[Tensor]:
    """Return the states (T, D), by depth, of the tokens of texts, which are sorted longest first.

    Args:
        backbone: a model for which `install_packing` returned None, with or without adapters.
        ids: (T,) tokens of all texts.
        lengths: (N,) tokens of each text.
        select: which states to return.
        options: further arguments of the model.

    """
    num_tokens = len(ids)
    if ids.device.type in ATTENDS_BY_LENGTH_GROUP:  # padded with dummy one-token texts
        num_padding = round_up_rows(num_tokens) - num_tokens
        ids, lengths = pad(ids, (0, num_padding)), np.pad(lengths, (0, num_padding), constant_values=1)
    starts = np.repeat(lengths.cumsum() - lengths, lengths)
    output = backbone(
        input_ids=ids[None],
        position_ids=to_device(np.arange(len(starts)) - starts + position_offset(backbone), ids.device)[None],
        # A 4D mask is passed on as it is. Without one, transformers would look for packed texts in the positions, and
        # wait for the device to do so.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
        packed_texts=PackedTexts(lengths, ids.device),
        **options,
    )
    return [states[0, :num_tokens] for states in select(output)]


def run_padded(
    backbone: Any,
    ids: Tensor,
    lengths: Lengths,
    pad_id: int,
    select: StateSelector = last_hidden_states,
    **options: bool,
) -> list[Tensor]:
    """Return the same as `run_packed`, for any model and any order of texts, run as one padded batch."""
    positions = np.arange(lengths.max())
    is_token = positions < lengths[:, None]
    gather_indices = np.where(is_token, (lengths.cumsum() - lengths)[:, None] + positions, 0)
    mask = to_device(is_token, ids.device)
    output = backbone(
        input_ids=torch.where(mask, ids[to_device(gather_indices, ids.device)], pad_id),
        attention_mask=mask.long(),
        **options,
    )
    token_indices = to_device(np.flatnonzero(is_token), ids.device)
    return [states.flatten(0, 1)[token_indices] for states in select(output)]


def run_padded_buckets(
    backbone: Any,
    ids: Tensor,
    lengths: Lengths,
    pad_id: int,
    select: StateSelector = last_hidden_states,
    **options: bool,
) -> list[Tensor]:
    """Return the same as `run_padded`, for texts sorted longest first, run as one padded batch per bucket."""
    buckets = length_buckets(lengths, ids.device.type)
    parts = torch.split(ids, [int(bucket.sum()) for bucket in buckets])
    states = [
        run_padded(backbone, part, bucket, pad_id, select, **options)
        for part, bucket in zip(parts, buckets, strict=True)
    ]
    return [torch.cat(layer_states) for layer_states in zip(*states, strict=True)]


def length_buckets(lengths: Lengths, device_type: str) -> list[Lengths]:
    """Split sorted lengths into buckets of texts that are padded together."""
    return np.array_split(lengths, min(NUM_LENGTH_BUCKETS.get(device_type, 1), len(lengths)))


def padding_fraction(lengths: Lengths, device_type: str) -> float:
    """Return the fraction of padding in the positions that `run_padded_buckets` runs, for lengths in any order."""
    buckets = length_buckets(np.sort(lengths)[::-1], device_type)
    return 1 - int(lengths.sum()) / sum(int(bucket.max()) * len(bucket) for bucket in buckets)


def token_positions(lengths: Lengths, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return (T,): the positions of the tokens of texts with these lengths (N,), taking the texts in that order."""
    starts, sorted_lengths = (lengths.cumsum() - lengths)[order], lengths[order]
    sorted_starts = sorted_lengths.cumsum() - sorted_lengths
    return np.arange(lengths.sum()) + np.repeat(starts - sorted_starts, sorted_lengths)


def position_embedding(backbone: Any) -> Any:
    """Return the model's module of learned position embeddings, None if positions are rotary or relative."""
    return getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)


def position_offset(backbone: Any) -> int:
    """Return the position of a text's first token: the RoBERTa family counts from padding_idx + 1."""
    padding = getattr(position_embedding(backbone), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def install_packing(backbone: Any, attn_implementation: str | None = None) -> str | None:
    """Let a model run packed rows if a test gives the same as padded ones; return why not if it does not.

    Relative position biases (MPNet, DeBERTa) and capped scores (Gemma 2) are computed outside the attention function,
    and code from a repository may ignore where texts begin: such models stay as they are.

    Args:
        backbone: a model, with or without adapters.
        attn_implementation: the attention that was asked for, which packing would replace; None for any.

    """
    if attn_implementation is not None:
        return f"model.attn_implementation={attn_implementation}"
    if not backbone._can_set_attn_implementation():
        return "this architecture has an attention of its own"
    original, was_training, is_exact = backbone.config._attn_implementation, backbone.training, False
    backbone.eval()
    try:
        is_exact = _packed_equals_padded(backbone)
    except Exception:  # whatever it is that such a model cannot do, it can still run padded
        is_exact = False
    finally:
        backbone.train(was_training)
        if not is_exact:
            backbone.set_attn_implementation(original)
    return None if is_exact else "packed rows differ from padded ones in this architecture"


def packing_is_exact(backbone: Any, *, training: bool) -> bool:
    """Return whether packed rows give what padded ones do on the current device, under the active autocast.

    On a GPU, another attention function computes them than where the model was loaded, and in training perhaps a third.

    Args:
        backbone: a model for which `install_packing` returned None, with or without adapters.
        training: whether packed rows must have gradients too.

    """
    was_training = backbone.training
    backbone.eval()
    try:
        return _packed_equals_padded(backbone) and (not training or _packed_gradients_are_finite(backbone))
    except Exception:  # whatever the device cannot do
        return False
    finally:
        backbone.train(was_training)


def probe_inputs(backbone: Any) -> tuple[Tensor, Lengths]:
    """Return the tokens (T,) and the lengths of texts that any model can read."""
    device, lengths = backbone.get_input_embeddings().weight.device, np.array([6, 4, 4])
    return torch.arange(1, lengths.sum() + 1, device=device).remainder(backbone.config.vocab_size), lengths


@torch.no_grad()
def _packed_equals_padded(backbone: Any) -> bool:
    """Run texts padded with the model's own attention, then packed, and return whether the states agree."""
    ids, lengths = probe_inputs(backbone)
    padded = run_padded(backbone, ids, lengths, pad_id=0)[0].float()
    if backbone.config._attn_implementation not in (PACKED, PACKED_IN_BLOCKS):
        set_packed_attention(backbone)
    packed = run_packed(backbone, ids, lengths)[0].float()
    autocast = torch.is_autocast_enabled(ids.device.type)
    low_precision = autocast or backbone.dtype != torch.float32 or getattr(backbone, "is_quantized", False)
    # Errors of the later texts, which might wrongly see the first one. Take their median, because in bfloat16 single
    # tokens differ at random.
    errors = (packed - padded)[lengths[0] :].norm(dim=1) / padded[lengths[0] :].norm(dim=1)
    return bool(errors.median() <= (0.1 if low_precision else 1e-4))


def _packed_gradients_are_finite(backbone: Any) -> bool:
    """Run packed texts with dropout, forward and backward, and return whether gradients are finite."""
    ids, lengths = probe_inputs(backbone)
    trainable = next((parameter for parameter in backbone.parameters() if parameter.requires_grad), None)
    if trainable is None:
        return True
    backbone.train()
    with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []), torch.enable_grad():
        states = run_packed(backbone, ids, lengths)[0].float()
        # The norm: its gradient fits into float16, however large the states are.
        (gradient,) = torch.autograd.grad(states.norm(), trainable)
    return bool(gradient.isfinite().all())

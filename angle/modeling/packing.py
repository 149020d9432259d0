"""Packed execution: the tokens of all texts in one row, none of them padding.

Everything but attention works on single tokens, so texts can be concatenated into a row (1, T), each with its own
positions. Attention needs to know which tokens belong together. On a CPU, texts are sorted by length, and one call
without any mask handles all texts of equal length (see `angle.kernels.attention`). This information travels in the
model's keyword arguments, so that layers that are rerun in the backward pass (gradient checkpointing) see their own
batch. Where layers are compiled, attention is called between their graphs, because the calls it makes
differ from batch to batch.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from angle.kernels.attention.packed import ATTENDS_BY_LENGTH_GROUP
from angle.kernels.attention.varlen import PackedTexts
from angle.kernels.linear import round_up_rows
from angle.modeling.layers import StateSelector, last_hidden_states
from angle.modeling.token_types import TokenTypes
from angle.structures import Lengths, to_device

#: Number of buckets of similar length that a padded batch is split into. CPUs pay for padding, GPUs for launches.
NUM_LENGTH_BUCKETS = {"cpu": 4}


class Layout(StrEnum):
    """How the texts of a batch are run: as one row, or as rows that are grouped in one of three ways."""

    PACKED = "packed"
    PADDED = "padded"
    EQUAL_LENGTHS = "one length at a time"
    ALONE = "one at a time"


def run_packed(
    backbone: Any,
    ids: Tensor,
    lengths: Lengths,
    select: StateSelector = last_hidden_states,
    token_types: TokenTypes | None = None,
    **options: bool,
) -> list[Tensor]:
    """Return the states (T, D), by depth, of the tokens of texts, which are sorted longest first.

    Args:
        backbone: a model for which `install_packing` returned None, with or without adapters.
        ids: (T,) tokens of all texts.
        lengths: (N,) tokens of each text.
        select: which states to return.
        token_types: the types of tokens, for a model that uses them.
        options: further arguments of the model.

    """
    num_tokens = len(ids)
    if ids.device.type in ATTENDS_BY_LENGTH_GROUP:  # padded with dummy one-token texts
        num_padding = round_up_rows(num_tokens) - num_tokens
        ids, lengths = pad(ids, (0, num_padding)), np.pad(lengths, (0, num_padding), constant_values=1)
    output = backbone(
        input_ids=ids[None],
        position_ids=_packed_positions(backbone, ids, lengths)[None],
        # A 4D mask is passed on as it is. Without one, transformers would look for packed texts in the positions, and
        # wait for the device to do so.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
        packed_texts=PackedTexts(lengths, ids.device),
        **({} if token_types is None else {"token_type_ids": token_types.of_texts(lengths, ids.device)[None]}),
        **options,
    )
    return [states[0, :num_tokens] for states in select(output)]


def _packed_positions(backbone: Any, ids: Tensor, lengths: Lengths) -> Tensor:
    """Return (T,): the position that the model gives to each token when its text is alone."""
    starts = np.repeat(lengths.cumsum() - lengths, lengths)
    padding = padding_position(backbone)
    if padding is None:
        return to_device(np.arange(len(starts)) - starts, ids.device)
    # Tokens that the model takes for padding are not counted, wherever in a text they are.
    is_counted = (ids != padding).long()
    count, first = is_counted.cumsum(0), to_device(starts, ids.device)
    return (count - count[first] + is_counted[first]) * is_counted + padding


def run_padded(
    backbone: Any,
    ids: Tensor,
    lengths: Lengths,
    pad_id: int,
    select: StateSelector = last_hidden_states,
    token_types: TokenTypes | None = None,
    **options: bool,
) -> list[Tensor]:
    """Return the same as `run_packed`, for any model and any order of texts, run as one padded batch."""
    positions = np.arange(lengths.max())
    is_token = positions < lengths[:, None]
    gather = np.where(is_token, (lengths.cumsum() - lengths)[:, None] + positions, 0)
    gather_indices, mask = to_device(gather, ids.device), to_device(is_token, ids.device)
    types = None if token_types is None else token_types.of_texts(lengths, ids.device)
    output = backbone(
        input_ids=torch.where(mask, ids[gather_indices], pad_id),
        attention_mask=mask.long(),
        **({} if types is None else {"token_type_ids": types[gather_indices]}),
        **options,
    )
    token_indices = to_device(np.flatnonzero(is_token), ids.device)
    return [states.flatten(0, 1)[token_indices] for states in select(output)]


def run_in_groups(
    backbone: Any,
    ids: Tensor,
    groups: list[Lengths],
    pad_id: int,
    select: StateSelector = last_hidden_states,
    token_types: TokenTypes | None = None,
    **options: bool,
) -> list[Tensor]:
    """Return the same as `run_padded`, for texts that are run as one padded batch per group of their lengths."""
    parts = torch.split(ids, [int(group.sum()) for group in groups])
    states = [
        run_padded(backbone, part, group, pad_id, select, token_types, **options)
        for part, group in zip(parts, groups, strict=True)
    ]
    return [torch.cat(layer_states) for layer_states in zip(*states, strict=True)]


def split_into_groups(lengths: Lengths, layout: Layout, device_type: str) -> list[Lengths]:
    """Split sorted lengths into groups of texts that are run together; similar lengths if they are to be padded."""
    assert layout is not Layout.PACKED
    if layout is Layout.EQUAL_LENGTHS:
        return np.split(lengths, np.flatnonzero(np.diff(lengths)) + 1)
    num_groups = NUM_LENGTH_BUCKETS.get(device_type, 1) if layout is Layout.PADDED else len(lengths)
    return np.array_split(lengths, min(num_groups, len(lengths)))


def padding_fraction(lengths: Lengths, layout: Layout, device_type: str) -> float:
    """Return the fraction of padding in the positions that are run for texts of these lengths, in any order."""
    if layout is Layout.PACKED:
        return 0.0
    groups = split_into_groups(np.sort(lengths)[::-1], layout, device_type)
    return 1 - int(lengths.sum()) / sum(int(group.max()) * len(group) for group in groups)


def token_positions(lengths: Lengths, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return (T,): the positions of the tokens of texts with these lengths (N,), taking the texts in that order."""
    starts, sorted_lengths = (lengths.cumsum() - lengths)[order], lengths[order]
    sorted_starts = sorted_lengths.cumsum() - sorted_lengths
    return np.arange(lengths.sum()) + np.repeat(starts - sorted_starts, sorted_lengths)


def padding_position(backbone: Any) -> int | None:
    """Return the position of padding in a model that counts positions from the next one on, as RoBERTa does."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return padding

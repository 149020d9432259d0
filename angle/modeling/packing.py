"""Packed execution: the tokens of all texts in one row, none of them padding.

Everything but attention works on single tokens, so texts can be concatenated into a row (1, T), each with its own
positions. Attention needs to know which tokens belong together. On a CPU, texts are sorted by length, and one call
without any mask handles a run, that is, all texts of equal length; for attention with dropout see
`angle.modeling.blocks`, for a GPU `angle.modeling.varlen`. This information travels in the model's keyword arguments,
so that layers that are rerun in the backward pass (gradient checkpointing) see their own batch. Where layers are
compiled, attention is called between their graphs, because the calls it makes differ from batch to batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from angle.modeling.attention import Attention
from angle.modeling.blocks import Runs, attend_in_blocks
from angle.modeling.depths import Take, last_states
from angle.modeling.linear import even_rows
from angle.modeling.pooling import Lengths
from angle.modeling.varlen import Texts, attend_texts
from angle.structures import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Name of the attention function in transformers' registry.
IMPLEMENTATION = "angle_packed"

#: What some attention functions take beyond queries, keys and values: capped scores, biases, sinks.
NEEDED_BY_OTHERS = ("softcap", "position_bias", "s_aux")

#: Where attention is called once per run. Elsewhere, many small calls cost more than some padding in attention.
RUN_BY_RUN = ("cpu",)


class NotPackableError(Exception):
    """An architecture whose attention needs what packed execution does not provide."""


def run_packed(backbone: Any, ids: Tensor, lengths: Lengths, take: Take = last_states, **options: bool) -> list[Tensor]:
    """Return the states (T, D), by depth, of the tokens of texts, which are sorted longest first.

    Args:
        backbone: a model for which `enable_packing` returned True, with or without adapters.
        ids: (T,) tokens of all texts.
        lengths: (N,) tokens of each text.
        take: which states to return.
        options: further arguments of the model.

    """
    tokens = len(ids)
    if ids.device.type in RUN_BY_RUN:  # filled up with further texts of one token each
        filling = even_rows(tokens) - tokens
        ids, lengths = pad(ids, (0, filling)), np.pad(lengths, (0, filling), constant_values=1)
    starts = np.repeat(lengths.cumsum() - lengths, lengths)
    output = backbone(
        input_ids=ids[None],
        position_ids=to_device(np.arange(len(starts)) - starts + first_position(backbone), ids.device)[None],
        # A 4D mask is passed on as it is. Without one, transformers would look for packed texts in the positions, and
        # wait for the device to do so.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
        packed_texts=Texts(lengths, ids.device),
        **options,
    )
    return [states[0, :tokens] for states in take(output)]


def run_padded(
    backbone: Any, ids: Tensor, lengths: Lengths, pad_id: int, take: Take = last_states, **options: bool
) -> list[Tensor]:
    """Return the same as `run_packed`, for any model and any order of texts, run as one padded rectangle."""
    column = np.arange(lengths.max())
    filled = column < lengths[:, None]
    source = np.where(filled, (lengths.cumsum() - lengths)[:, None] + column, 0)
    mask = to_device(filled, ids.device)
    output = backbone(
        input_ids=torch.where(mask, ids[to_device(source, ids.device)], pad_id),
        attention_mask=mask.long(),
        **options,
    )
    real = to_device(np.flatnonzero(filled), ids.device)
    return [states.flatten(0, 1)[real] for states in take(output)]


def position_table(backbone: Any) -> Any:
    """Return the model's table of position embeddings, None if positions are rotary or relative."""
    return getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)


def first_position(backbone: Any) -> int:
    """Return the position of a text's first token: the RoBERTa family counts from padding_idx + 1."""
    padding = getattr(position_table(backbone), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


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
    packed_texts: Texts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each text of a packed row if `packed_texts` is given; else as transformers' sdpa does.

    Args:
        module: the attention layer; it says whether it is causal unless `is_causal` does.
        query: (1, H, T, d).
        key: (1, G, T, d), where H is a multiple of G.
        value: (1, G, T, d).
        attention_mask: the mask of padded rows.
        scaling: factor applied to the scores; None for 1 / sqrt(d).
        dropout: share of attention weights set to 0.
        is_causal: whether a token attends only to itself and to those before it.
        sliding_window: tokens at this distance or more are masked.
        packed_texts: where the texts of a packed row lie.
        kwargs: what else transformers passes on.

    Returns:
        (1, T, H, d), and no weights.

    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if any(kwargs.get(name) is not None for name in NEEDED_BY_OTHERS):
        raise NotPackableError
    if packed_texts is None:
        padded: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return padded
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    how = Attention(causal, sliding_window, scaling, dropout).within(packed_texts.longest)
    if query.device.type not in RUN_BY_RUN:
        return attend_texts(query, key, value, packed_texts, how), None
    attend_runs = attend_in_blocks if 0 < dropout < 1 else attend_run_by_run
    return attend_runs(query, key, value, packed_texts.runs, how), None


def attend_run_by_run(query: Tensor, key: Tensor, value: Tensor, runs: Runs, how: Attention) -> Tensor:
    """Return (1, T, H, d) as `attend_in_blocks` does, by one call of torch's attention per run."""
    kind = computed = value.dtype  # under autocast, rotated queries and keys are float32 beside bfloat16 values
    if value.device.type == "cpu" and kind != torch.float64:
        computed = torch.float32  # the CPU's kernels for short texts are twice as fast in it
    query, key, value = query.to(computed), key.to(computed), value.to(computed)
    sizes = [count * length for count, length in runs]
    # One split per tensor: the backward pass of a slice would fill a full-length tensor with zeros for every run.
    parts = zip(*(torch.split(tensor[0].transpose(0, 1), sizes) for tensor in (query, key, value)), strict=True)
    attended = []
    with torch.autocast(query.device.type, enabled=False):
        for (count, length), run in zip(runs, parts, strict=True):
            q, k, v = (part.view(count, length, *part.shape[1:]).transpose(1, 2) for part in run)
            mask = None if how.within(length).window is None else how.seen(length, q.device)
            out = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=how.dropout,
                is_causal=how.causal and mask is None,
                scale=how.scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)[None].to(kind)


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return sdpa's mask for padded rows, none for packed ones."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None:
        return None
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    return mask


def enable_packing(backbone: PreTrainedModel) -> bool:
    """Let a model run packed rows if they prove to give what padded ones do; return whether they do.

    Relative position biases (MPNet, DeBERTa) and capped scores (Gemma 2) are computed outside the attention function,
    and code from a repository may ignore the runs: such models stay as they are.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if not backbone._can_set_attn_implementation():
        return False
    AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(attend))  # type: ignore[no-untyped-call]
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)
    before, was_training, same = backbone.config._attn_implementation, backbone.training, False
    backbone.eval()
    try:
        same = _packed_equals_padded(backbone)
    except Exception:  # whatever it is that such a model cannot do, it can still run padded
        same = False
    finally:
        backbone.train(was_training)
        if not same:
            backbone.set_attn_implementation(before)
    return same


def works_here(backbone: Any, *, training: bool) -> bool:
    """Return whether packed rows give what padded ones do on the current device, under the active autocast.

    On a GPU, a different function computes them than where the model was loaded, and in training perhaps a third one.

    Args:
        backbone: a model for which `enable_packing` returned True, with or without adapters.
        training: whether packed rows must have gradients too.

    """
    was_training = backbone.training
    backbone.eval()
    try:
        return _packed_equals_padded(backbone) and (not training or _packed_can_be_trained(backbone))
    except Exception:  # whatever the device cannot do
        return False
    finally:
        backbone.train(was_training)


def some_texts(backbone: Any) -> tuple[Tensor, Lengths]:
    """Return the tokens (T,) and the lengths of texts that any model can read."""
    device, lengths = backbone.get_input_embeddings().weight.device, np.array([6, 4, 4])
    return torch.arange(1, lengths.sum() + 1, device=device).remainder(backbone.config.vocab_size), lengths


@torch.no_grad()
def _packed_equals_padded(backbone: Any) -> bool:
    """Run texts padded with the model's own attention, then packed, and return whether the states agree."""
    ids, lengths = some_texts(backbone)
    padded = run_padded(backbone, ids, lengths, pad_id=0)[0].float()
    if backbone.config._attn_implementation != IMPLEMENTATION:
        backbone.set_attn_implementation(IMPLEMENTATION)
    packed = run_packed(backbone, ids, lengths)[0].float()
    autocast = torch.is_autocast_enabled(ids.device.type)
    coarse = autocast or backbone.dtype != torch.float32 or getattr(backbone, "is_quantized", False)
    # Errors of the later texts, which might wrongly see the first one. Take their median, because in bfloat16 single
    # tokens differ at random.
    errors = (packed - padded)[lengths[0] :].norm(dim=1) / padded[lengths[0] :].norm(dim=1)
    return bool(errors.median() <= (0.1 if coarse else 1e-4))


def _packed_can_be_trained(backbone: Any) -> bool:
    """Run packed texts with dropout, forward and backward, and return whether gradients are finite."""
    ids, lengths = some_texts(backbone)
    trained = next((parameter for parameter in backbone.parameters() if parameter.requires_grad), None)
    if trained is None:
        return True
    backbone.train()
    with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []), torch.enable_grad():
        states = run_packed(backbone, ids, lengths)[0].float()
        # The norm: its gradient fits into float16, however large the states are.
        (gradient,) = torch.autograd.grad(states.norm(), trained)
    return bool(gradient.isfinite().all())

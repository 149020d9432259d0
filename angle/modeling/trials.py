"""Trials: what is not known of a model is tried on it, with probe texts, before it is believed.

Three things are tried when a model is loaded: whether it runs at all and in which direction it attends (`observe`),
and in which layout a text's states are those of the text alone (`choose_layout`). Padding, positions or the longest
text of a batch may change them: FNet mixes padding into texts, dynamic rotary positions depend on the longest text.
`PROVED` architectures are known to be exact when padded, so that only packed rows are tried on them, on short texts.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from angle.distributed.environment import is_main_process
from angle.errors import ConfigError, first_line
from angle.kernels.attention.packed import set_packed_attention
from angle.modeling.layers import base_model, last_hidden_states
from angle.modeling.packing import Layout, run_in_groups, run_packed, run_padded, split_into_groups
from angle.modeling.probing import call_options, device_of, differ, evaluating, plain_tokens, probe_ids
from angle.modeling.token_types import TokenTypes
from angle.structures import Lengths
from angle.terminal import print_note

#: Architectures of which tests show that padding and other texts change nothing, whatever their settings.
PROVED = frozenset(
    (
        "bert", "roberta", "xlm-roberta", "modernbert", "mpnet", "deberta-v2",
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3",
    )
)  # fmt: skip
#: Rotary positions of these types depend on the longest text of a batch, in any architecture.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
#: Longest text of a trial, unless rotary positions change beyond some greater length.
MAX_TRIAL_TOKENS = 2048
#: Seconds that a trial may take without a word.
SILENT_SECONDS = 30
#: Relative error of states that rounding explains, in float32 and below.
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-4, 0.1


@dataclass(frozen=True)
class Observation:
    """What a model was seen to do."""

    is_causal: bool | None
    """Whether tokens change the states of later tokens alone; None if none is seen to change another's."""
    position_limit: int | None
    """How many tokens it has positions for; None if they are rotary or relative, not looked up in a table."""


def observe(backbone: Any, name: str) -> Observation:
    """Run three short texts, two of which differ from the first in their last and in their first token.

    Args:
        backbone: a model as transformers has it, without adapters and hooks.
        name: `model.name_or_path`, for the message.

    Raises:
        ConfigError: it cannot run texts, or its states are not one per token and `hidden_size` wide.

    """
    *tokens, other = plain_tokens(backbone, 9)
    ids = torch.tensor([tokens, [*tokens[:-1], other], [other, *tokens[1:]]], device=device_of(backbone))
    lookups, options = _PositionTables(ids.shape[1]), call_options(backbone)
    try:
        with evaluating(backbone), lookups:
            states = backbone(input_ids=ids, attention_mask=torch.ones_like(ids), **options).last_hidden_state
    except Exception as error:  # whatever it is that such a model cannot do
        raise _cannot_work(name, backbone, f"fails on a short text ({_reason(error)})") from None
    width = getattr(backbone.config, "hidden_size", None)
    if width is None:
        raise _cannot_work(name, backbone, "is not for texts alone: its configuration has no hidden_size")
    if states.shape != (*ids.shape, width):
        raise _cannot_work(
            name, backbone, f"gives {ids.numel()} tokens states of shape {tuple(states.shape)}, not one of {width} each"
        )
    if not states.isfinite().all():
        raise _cannot_work(name, backbone, "gives states that are not finite")
    last_changed, first_changed = not states[0, -1].equal(states[1, -1]), not states[0, 0].equal(states[2, 0])
    if other != tokens[-1] and not (last_changed or first_changed):
        raise _cannot_work(name, backbone, "gives every text the same states, as if its weights were lost")
    if last_changed and first_changed and states[0, :-1].equal(states[1, :-1]) and states[0, 1:].equal(states[2, 1:]):
        # MRA, where its kernel is not installed
        raise _cannot_work(name, backbone, "gives every token a state that no other token changes")
    sees_later, sees_earlier = differ(states[0, :-1], states[1, :-1]), differ(states[0, 1:], states[2, 1:])
    return Observation(not sees_later if sees_later or sees_earlier else None, lookups.limit)


class _PositionTables(TorchDispatchMode):
    """Watches for tables that are looked up at consecutive rows, as only positions are."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_tokens = num_tokens
        self.limit: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rows = None
        if func.name() == "aten::embedding":
            rows = args[1]
        elif func.name() == "aten::index.Tensor" and args[0].ndim >= 2 and args[0].is_floating_point():
            rows = args[1][0]
        elif func.name() == "aten::index_select" and args[1] == 0:
            rows = args[2]
        if rows is not None and rows.dtype != torch.bool and rows.numel() and rows.numel() % self.num_tokens == 0:
            rows = rows.reshape(-1, self.num_tokens)
            first = int(rows[0, 0])
            is_table = len(args[0]) > self.num_tokens  # not the tokens' own states, in groups (Qwen 4)
            if is_table and bool((rows == torch.arange(first, first + self.num_tokens, device=rows.device)).all()):
                limit = len(args[0]) - first
                self.limit = limit if self.limit is None else min(limit, self.limit)
        return func(*args, **(kwargs or {}))


def _cannot_work(name: str, backbone: Any, problem: str) -> ConfigError:
    return ConfigError(
        f"model.name_or_path={name} cannot work: {type(base_model(backbone)).__name__} {problem}; choose an encoder "
        f"such as bert_base or a decoder such as qwen3_0.6b."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def is_proved(backbone: Any) -> bool:
    """Return whether a model's texts are known to change nothing in each other when padded."""
    model = base_model(backbone)
    return type(model).__module__.startswith("transformers.") and is_proved_config(model.config)


def is_proved_config(config: Any) -> bool:
    """Return the same of the models that transformers has for a configuration."""
    return config.model_type in PROVED and not any(name in _rope_types(config) for name in LENGTH_DEPENDENT_ROPE)


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of rotary positions: one set, or one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [part for part in (parameters, *parameters.values()) if isinstance(part, dict) and "rope_type" in part]


def _rope_types(config: Any) -> set[str]:
    return {part["rope_type"] for part in _rope_parameters(config)}


class LayoutTrial:
    """Texts run alone, with which layouts are compared. Created before any kernel is installed."""

    def __init__(
        self, backbone: Any, name: str, max_length: int, pad_id: int, token_types: TokenTypes | None = None
    ) -> None:
        """Run the texts as they should be: alone, shortest first; or padded, if that is known to give the same.

        Args:
            backbone: a model, with or without adapters.
            name: `model.name_or_path`, for messages.
            max_length: number of tokens of the longest text.
            pad_id: the token that pads.
            token_types: the types of tokens, for a model that uses them.

        Raises:
            ConfigError: the model fails on texts of that length.

        """
        self.backbone, self.name = backbone, name
        self.pad_id = pad_id
        self.proved = is_proved(backbone)
        self.options: dict[str, Any] = {"token_types": token_types, **call_options(backbone)}
        longest = _trial_tokens(base_model(backbone).config, max_length)
        self.lengths = np.minimum([6, 4, 4] if self.proved else [longest, 17, 5, 5], max_length)
        self.ids = probe_ids(backbone, int(self.lengths.sum()))
        self._expected = self._run(Layout.PADDED) if self.proved else self._run_alone()

    def _run_alone(self) -> Tensor:
        texts = torch.split(self.ids, self.lengths.tolist())
        try:
            states = [self._run_text(text) for text in texts[:1:-1]]
            started = time.perf_counter()
            states.append(self._run_text(texts[1]))
            self._announce((time.perf_counter() - started) / self.lengths[1])
            return torch.cat([self._run_text(texts[0]), *reversed(states)])
        except Exception as error:  # for example, an index beyond a table of positions
            if self._fails(texts[0][:1]):
                raise _cannot_work(self.name, self.backbone, f"fails on a text ({_reason(error)})") from None
            # The longest text that runs, to the token: its length is what to type.
            runs = bisect_left(range(1, len(texts[0])), True, key=lambda length: self._fails(texts[0][:length]))
            raise ConfigError(
                f"model.max_length={self.lengths[0]} cannot work: {type(base_model(self.backbone)).__name__} fails on "
                f"a text of {runs + 1} tokens ({_reason(error)}); type model.max_length={runs}."
            ) from None

    def _announce(self, seconds_per_token: float) -> None:
        """Say that the trial takes long, if what remains does: the longest text alone, and all padded to its length."""
        longest = self.lengths[0]
        if seconds_per_token * longest * (1 + len(self.lengths)) > SILENT_SECONDS and is_main_process():
            name = type(base_model(self.backbone)).__name__
            note = f"trying {name} on texts of {longest} tokens may take minutes; a lower model.max_length takes less"
            print_note(note)

    def _fails(self, text: Tensor) -> bool:
        try:
            self._run_text(text)
        except Exception:
            return True
        return False

    def _run_text(self, text: Tensor) -> Tensor:
        with evaluating(self.backbone):
            return run_padded(
                self.backbone, text, np.array([len(text)]), self.pad_id, last_hidden_states, **self.options
            )[0]

    def _run(self, layout: Layout) -> Tensor:
        with evaluating(self.backbone):
            if layout is Layout.PACKED:
                return run_packed(self.backbone, self.ids, self.lengths, last_hidden_states, **self.options)[0]
            groups = [self.lengths]
            if layout is not Layout.PADDED:  # padded texts are one group here, to have as much padding as there can be
                groups = split_into_groups(self.lengths, layout, self.ids.device.type)
            return run_in_groups(self.backbone, self.ids, groups, self.pad_id, last_hidden_states, **self.options)[0]

    def passes(self, layout: Layout) -> bool:
        """Return whether every text has the states that it should have."""
        try:
            return states_agree(self.backbone, self._run(layout), self._expected, self.lengths)
        except Exception:  # whatever it is that such a model cannot do, it may still run in another layout
            return False

    def install_packing(self, attn_implementation: str | None = None) -> str | None:
        """Let the model run packed rows if they pass; return why not if they do not.

        Relative position biases (MPNet, DeBERTa) and capped scores (Gemma 2) are computed outside the attention
        function, and code from a repository may ignore where texts begin: such models stay as they are.

        Args:
            attn_implementation: the attention that was asked for, which packing would replace; None for any.

        """
        if attn_implementation is not None:
            return f"model.attn_implementation={attn_implementation}"
        if not self.backbone._can_set_attn_implementation():
            return "this architecture has an attention of its own"
        original, is_exact = self.backbone.config._attn_implementation, False
        try:
            set_packed_attention(self.backbone)
            is_exact = self.passes(Layout.PACKED)
        except Exception:  # it has no attention function that could be set
            is_exact = False
        finally:
            if not is_exact:
                self.backbone.set_attn_implementation(original)
        return None if is_exact else "packed rows differ from padded ones in this architecture"

    def choose_layout(self, *, packed: bool) -> Layout:
        """Return the fastest layout besides packed rows in which every text has the states that it has alone.

        Args:
            packed: whether packed rows pass, so that this layout is for other devices only, and need not be tried.

        Raises:
            ConfigError: there is none.

        """
        if self.proved:
            return Layout.PADDED
        if packed:
            return Layout.EQUAL_LENGTHS
        for layout in (Layout.PADDED, Layout.EQUAL_LENGTHS, Layout.ALONE):
            if self.passes(layout):
                return layout
        config = base_model(self.backbone).config
        limits = [part.get("original_max_position_embeddings") for part in _rope_parameters(config)]
        problem = "gives a text embeddings that depend on the texts before it, or on chance"
        if "dynamic" in _rope_types(config):
            limit = min([limit for limit in limits if limit] or [config.max_position_embeddings])
            raise ConfigError(
                f"model.name_or_path={self.name} with model.max_length={self.lengths[0]} cannot work: its rotary "
                f"positions are dynamic, so that texts beyond {limit} tokens change those after them; type "
                f"model.max_length={limit}."
            )
        raise _cannot_work(self.name, self.backbone, problem)


def _trial_tokens(config: Any, max_length: int) -> int:
    """Return the length of a trial's longest text."""
    thresholds = [part.get("original_max_position_embeddings") or 0 for part in _rope_parameters(config)]
    return min(max_length, max(MAX_TRIAL_TOKENS, *thresholds, 0) + 1)


def states_agree(backbone: Any, states: Tensor, expected: Tensor, lengths: Lengths) -> bool:
    """Return whether the states (T, D) of every text of these lengths (N,) agree with the expected ones."""
    states, expected = states.float(), expected.float()
    # A token that pads, inside a text, may have a state of zeros.
    errors = (states - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    low_precision = (
        torch.is_autocast_enabled(states.device.type)
        or backbone.dtype != torch.float32
        or getattr(backbone, "is_quantized", False)
    )
    by_text = torch.split(errors, lengths.tolist())
    if low_precision:  # single tokens differ at random
        return all(bool(text.median() <= LOW_PRECISION_TOLERANCE) for text in by_text)
    return all(bool(text.mean() <= TOLERANCE) for text in by_text)


def padding_is_exact(backbone: Any, max_length: int, pad_id: int) -> bool:
    """Return whether texts of up to so many tokens, padded on the right, have the states that they have alone."""
    trial = LayoutTrial(backbone, type(base_model(backbone)).__name__, max_length, pad_id)
    return trial.proved or trial.passes(Layout.PADDED)


def packing_is_exact(backbone: Any, *, training: bool) -> bool:
    """Return whether packed rows are exact on the current device, under the active autocast.

    On a GPU, another attention function computes them than where the model was loaded, and in training perhaps a third.

    Args:
        backbone: a model in which packing was installed, with or without adapters.
        training: whether packed rows must have gradients too.

    """
    try:
        trial = LayoutTrial(backbone, type(base_model(backbone)).__name__, max_length=17, pad_id=0)
        return trial.passes(Layout.PACKED) and (not training or _packed_gradients_are_finite(backbone, trial))
    except Exception:  # whatever the device cannot do
        return False


def _packed_gradients_are_finite(backbone: Any, trial: LayoutTrial) -> bool:
    """Run packed texts with dropout, forward and backward, and return whether gradients are finite."""
    trainable = next((parameter for parameter in backbone.parameters() if parameter.requires_grad), None)
    if trainable is None:
        return True
    was_training = backbone.training
    backbone.train()
    try:
        with torch.random.fork_rng([trial.ids.device] if trial.ids.is_cuda else []), torch.enable_grad():
            states = run_packed(backbone, trial.ids, trial.lengths)[0].float()
            # The norm: its gradient fits into float16, however large the states are.
            (gradient,) = torch.autograd.grad(states.norm(), trainable)
    finally:
        backbone.train(was_training)
    return bool(gradient.isfinite().all())

"""Token states -> one embedding per text: the table of poolings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import PoolingConfig
from angle.errors import ConfigError
from angle.structures import Lengths, to_device

#: Pools the states (T, D) of the tokens of N texts, of lengths (N,), into their embeddings (N, D).
PoolingFunction = Callable[[Tensor, Lengths], Tensor]

#: The key of each of sentence-transformers' pooling modes in the config.json of its Pooling module.
SENTENCE_TRANSFORMERS_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@dataclass(frozen=True)
class Pooling:
    """A pooling strategy."""

    function: PoolingFunction
    sentence_transformers: tuple[str, ...] = ()
    """The modes of sentence-transformers whose mean it is; empty if it has no equivalent there."""


def pool(states: Tensor, lengths: Lengths, strategy: str) -> Tensor:
    """Return the embeddings (N, D) of N texts, in float32 (float64 for float64 states).

    Args:
        states: (T, D) states of the texts' tokens, one text after the other and without padding.
        lengths: (N,) tokens of each text, at least one.
        strategy: a name in `POOLINGS`, or the index of a token, counted from 0.

    Raises:
        ValueError: a text has no token at that index.

    """
    if states.dtype != torch.float64:
        states = states.float()
    if strategy in POOLINGS:
        return POOLINGS[strategy].function(states, lengths)
    return _token_at(int(strategy), states, lengths)


def resolve_pooling(config: PoolingConfig | None, saved: str | None, *, is_llm: bool) -> str:
    """Return the pooling strategy: from the settings, else the one saved with the model, else the usual one."""
    if config is not None and config.strategy != "auto":
        return config.strategy
    return saved or ("avg" if is_llm else "cls")


def check_causal_pooling(strategy: str, model_class: str) -> None:
    """Raise ConfigError if a decoder whose first layer is causal is pooled by its first token."""
    if strategy in ("cls", "0"):
        raise ConfigError(
            f"pooling.strategy={strategy} cannot work with {model_class}: in a decoder the first token has seen no "
            f"other; choose avg or last, or billm=all."
        )


def is_pooling(strategy: str) -> bool:
    """Return whether `pool` knows a strategy."""
    return strategy in POOLINGS or strategy.isdecimal()


def strategy_of_modes(modes: tuple[str, ...]) -> str | None:
    """Return the strategy that is the mean of pooling modes of sentence-transformers, None if there is none."""
    return next(
        (name for name, pooling in POOLINGS.items() if sorted(pooling.sentence_transformers) == sorted(modes)), None
    )


def averaging_matrix(width: int, dimensions: int, num_modes: int) -> Tensor:
    """Return (dimensions, num_modes * width): maps concatenated embeddings to the first dimensions of their mean."""
    block = torch.eye(width)[:dimensions] / num_modes
    return torch.cat([block] * num_modes, dim=1).contiguous()


def _first(states: Tensor, lengths: Lengths) -> Tensor:
    return states[to_device(lengths.cumsum() - lengths, states.device)]


def _last(states: Tensor, lengths: Lengths) -> Tensor:
    return states[to_device(lengths.cumsum() - 1, states.device)]


def _token_at(index: int, states: Tensor, lengths: Lengths) -> Tensor:
    if index >= lengths.min():
        raise ValueError(
            f"pooling.strategy={index} asks for token {index} (counted from 0), but a text has only "
            f"{lengths.min()} tokens; choose a smaller number, or cls, avg or last."
        )
    return states[to_device(lengths.cumsum() - lengths + index, states.device)]


def _mean(states: Tensor, lengths: Lengths) -> Tensor:
    return _segment_reduce("mean", states, lengths)


def _max(states: Tensor, lengths: Lengths) -> Tensor:
    return _segment_reduce("max", states, lengths)


def _segment_reduce(operation: str, states: Tensor, lengths: Lengths) -> Tensor:
    # Sums in a fixed order, unlike index_add on a GPU, so that a run can be repeated bit for bit. CPUs and CUDA have
    # it; elsewhere, the states take a detour via the CPU.
    inputs = states if states.device.type in ("cpu", "cuda") else states.cpu()
    counts = to_device(lengths, inputs.device)
    return torch.segment_reduce(inputs, operation, lengths=counts, unsafe=True).to(states.device)


def _average(first: PoolingFunction, second: PoolingFunction) -> PoolingFunction:
    return lambda states, lengths: (first(states, lengths) + second(states, lengths)) / 2


#: Every pooling by its name in pooling.strategy.
POOLINGS = {
    "cls": Pooling(_first, ("cls",)),
    "avg": Pooling(_mean, ("mean",)),
    "mean": Pooling(_mean, ("mean",)),
    "max": Pooling(_max, ("max",)),
    "last": Pooling(_last, ("lasttoken",)),
    "cls_avg": Pooling(_average(_first, _mean), ("cls", "mean")),
    "cls_max": Pooling(_average(_first, _max), ("cls", "max")),
}

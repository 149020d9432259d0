"""Disable techniques of this project, to measure what each of them contributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from angle.data import batching
from angle.modeling import adapters, encoder, packing
from angle.training import loop, setup
from benchmarks.throughput.jobs import TECHNIQUES


def take_out(techniques: tuple[str, ...]) -> dict[str, Any]:
    """Disable techniques in this process, and return the settings of `train` that disable others."""
    for name in techniques:
        if name != "packed rows":
            _TAKE_OUT[name]()
    return {"packing": "off"} if "packed rows" in techniques else {}


def _encode_repeats() -> None:
    class Numpy:
        """numpy, with a `unique` that treats every text as distinct."""

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def unique(self, texts: Any, **_: bool) -> tuple[Any, Any, Any]:
            return texts.flatten(), np.arange(texts.size), np.ones(texts.size, np.int64)

    batching.np = Numpy()


def _attend_run_by_run() -> None:
    packing.attend_in_blocks = packing.attend_run_by_run


def _multiply_as_torch_does() -> None:
    encoder.install_linear = lambda model: None


def _drop_as_torch_does() -> None:
    encoder.install_dropout = lambda model: None


def _give_memory_back() -> None:
    loop.keep_freed_memory = lambda device: nullcontext()


def _make_batches_in_turn() -> None:
    def prefetch(items: Iterator[Any]) -> Iterator[Any]:
        yield from items

    loop.prefetch = prefetch


def _step_in_a_loop() -> None:
    make = setup.make_optimizer

    def unfused(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = make(*arguments)
        for group in optimizer.param_groups:
            group["fused"] = False
        return optimizer

    setup.make_optimizer = unfused


def _train_absent_tokens() -> None:
    setup.freeze_unused_tokens = lambda model, ids: None


def _adapt_as_peft_does() -> None:
    adapters.install_lora = lambda model: None


def _norm_as_the_model_does() -> None:
    encoder.install_rms_norm = lambda model: None


_TAKE_OUT: dict[str, Callable[[], None]] = {
    "each distinct text once": _encode_repeats,
    "attention in blocks": _attend_run_by_run,
    "products by oneDNN": _multiply_as_torch_does,
    "dropout from 16 bits": _drop_as_torch_does,
    "freed memory kept": _give_memory_back,
    "batches made ahead": _make_batches_in_turn,
    "fused AdamW": _step_in_a_loop,
    "absent tokens left out": _train_absent_tokens,
    "adapters as one operation": _adapt_as_peft_does,
    "norms as one kernel": _norm_as_the_model_does,
}
assert {"packed rows", *_TAKE_OUT} == set(TECHNIQUES)

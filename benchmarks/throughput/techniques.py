"""Disable techniques of this project, to measure what each of them contributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from angle.data import collate
from angle.training import loop
from benchmarks.throughput.jobs import KERNEL_TECHNIQUES, TECHNIQUES

#: A weight decay that trains every row of the table of tokens, yet is too small to change a weight.
IMPERCEPTIBLE = 1e-30


@dataclass
class Disabled:
    """Techniques that are disabled in this process."""

    train: dict[str, Any] = field(default_factory=dict)
    """Settings of `train` that disable some of them."""
    patched: list[str] = field(default_factory=list)
    """Names that were replaced to disable others."""
    called: set[str] = field(default_factory=set)
    """Those of them that have been called."""

    def patch(self, module: ModuleType, path: str, replacement: Callable[..., Any]) -> None:
        """Replace a function that a module uses, for this module alone.

        Args:
            module: the module.
            path: the function's name in it, or those of an imported module and its function: "np.unique".
            replacement: what is called instead.

        Raises:
            AttributeError: the module has no such function, so this would disable nothing.

        """
        *parents, name = path.split(".")
        if any(not hasattr(module, part) for part in parents or [name]):
            raise AttributeError(f"{module.__name__} has no {path}: bring the benchmark up to date.")

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.called.add(path)
            return replacement(*args, **kwargs)

        if parents:
            imported = getattr(module, parents[0])
            setattr(module, parents[0], SimpleNamespace(**vars(imported) | {name: recorded}))
        else:
            setattr(module, name, recorded)
        self.patched.append(path)

    def check(self) -> None:
        """Raise RuntimeError if a replacement was never called, so that nothing was disabled."""
        unused = [path for path in self.patched if path not in self.called]
        if unused:
            raise RuntimeError(f"Training does not call {', '.join(unused)}: bring the benchmark up to date.")


def disable(techniques: Sequence[str]) -> Disabled:
    """Disable techniques in this process; `kernels_without` disables those that are kernels.

    Raises:
        ValueError: there is no such technique.

    """
    check_known(techniques)
    disabled = Disabled()
    for name in techniques:
        if name not in KERNEL_TECHNIQUES:
            _DISABLE[name](disabled)
    return disabled


def kernels_without(techniques: Sequence[str], kernels: Sequence[str]) -> list[str]:
    """Return the kernels without those that belong to some techniques.

    Raises:
        ValueError: there is no such technique.

    """
    check_known(techniques)
    removed = {KERNEL_TECHNIQUES[name] for name in techniques if name in KERNEL_TECHNIQUES}
    return [kernel for kernel in kernels if kernel not in removed]


def check_known(techniques: Sequence[str]) -> None:
    """Raise ValueError if there is no technique of some name."""
    unknown = [name for name in techniques if name not in TECHNIQUES]
    if unknown:
        raise ValueError(f"There is no technique {', '.join(unknown)}; there are: {', '.join(TECHNIQUES)}.")


def _encode_repeats(disabled: Disabled) -> None:
    def every_text(texts: Any, **_: bool) -> tuple[Any, Any, Any]:
        return texts.flatten(), np.arange(texts.size), np.ones(texts.size, np.int64)

    disabled.patch(collate, "np.unique", every_text)


def _prepare_batches_in_turn(disabled: Disabled) -> None:
    def in_turn(items: Iterator[Any]) -> Iterator[Any]:
        yield from items

    disabled.patch(loop, "prefetch", in_turn)


def _step_without_fusion(disabled: Disabled) -> None:
    make = loop.make_optimizer

    def unfused(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = make(*arguments)
        for group in optimizer.param_groups:
            group["fused"] = False
        return optimizer

    disabled.patch(loop, "make_optimizer", unfused)


def _train_absent_tokens(disabled: Disabled) -> None:
    disabled.train["weight_decay"] = IMPERCEPTIBLE


_DISABLE: dict[str, Callable[[Disabled], None]] = {
    "each distinct text once": _encode_repeats,
    "batches made ahead": _prepare_batches_in_turn,
    "fused AdamW": _step_without_fusion,
    "absent tokens left out": _train_absent_tokens,
}
assert {*KERNEL_TECHNIQUES, *_DISABLE} == set(TECHNIQUES)

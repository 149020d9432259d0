"""Modules whose class gets another forward: weights, hooks and names stay, and so does what isinstance says."""

from __future__ import annotations

from typing import Any

from torch import nn

_MIXED: dict[tuple[type, type], type] = {}


def add_mixin(extra: type, module: nn.Module) -> None:
    """Turn a module into one of a class that inherits from `extra` first, and from the module's own class."""
    if isinstance(module, extra):
        return
    key = extra, type(module)
    if key not in _MIXED:
        # Copies and pickles are made of the two classes, since the third has no name to be imported by.
        again = {"__reduce__": lambda self: (_mixed, key, self.__dict__)}
        _MIXED[key] = type(type(module).__name__, key, again)
    module.__class__ = _MIXED[key]


def _mixed(extra: type, own: type[nn.Module]) -> nn.Module:
    """Return a module as `add_mixin` makes it, without any state."""
    module: Any = own.__new__(own)
    add_mixin(extra, module)
    return module  # type: ignore[no-any-return]

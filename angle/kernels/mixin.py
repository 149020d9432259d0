"""Override forward by swapping a module's class at run time; weights, hooks and isinstance are unaffected."""

from __future__ import annotations

from typing import Any

from torch import nn

#: Why a kernel was not installed in a model that has nothing for it to replace.
NO_MODULE = "no such module"

_MIXED: dict[tuple[type, type], type] = {}


def add_mixin(mixin: type, module: nn.Module) -> None:
    """Turn a module into one of a class that inherits from `mixin` first, and from the module's own class."""
    if isinstance(module, mixin):
        return
    key = mixin, type(module)
    if key not in _MIXED:
        # Copies and pickles are made of the two classes, since the third has no name to be imported by.
        members = {"__reduce__": lambda self: (_mixed, key, self.__dict__)}
        _MIXED[key] = type(type(module).__name__, key, members)
    module.__class__ = _MIXED[key]


def _mixed(mixin: type, base: type[nn.Module]) -> nn.Module:
    """Return a module as `add_mixin` makes it, without any state."""
    module: Any = base.__new__(base)
    add_mixin(mixin, module)
    return module  # type: ignore[no-any-return]

"""The evaluators, one a module. A module that is put here is found: nothing lists them."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from angle.evaluation.evaluator import ValidationEvaluator


@cache
def validation_evaluators() -> tuple[type[ValidationEvaluator], ...]:
    """Return what each module calls EVALUATOR, in the order of the modules' names."""
    evaluator_modules = [
        importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
    ]
    return tuple(module.EVALUATOR for module in evaluator_modules if hasattr(module, "EVALUATOR"))

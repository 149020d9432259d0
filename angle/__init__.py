"""Train, evaluate and convert AnglE sentence encoders.

The names below are the public API. Each is imported when it is first used, so that `import angle` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from angle.api.angle import AnglE
    from angle.api.datasets import AngleDataTokenizer, DatasetFormats
    from angle.api.scores import CorrelationEvaluator
    from angle.api.training import fit
    from angle.config import ConvertConfig, EvaluateConfig, ModelConfig, PoolingConfig, TrainConfig
    from angle.config.build import build_config
    from angle.errors import ConfigError, DataError, HubError, TrainingError
    from angle.evaluation.report import evaluate
    from angle.export.sentence_transformers import convert
    from angle.modeling.encoder import Encoder
    from angle.prompts import Prompts
    from angle.training.dry_run import dry_run
    from angle.training.result import Result

_MODULE_OF = {
    "AnglE": "angle.api.angle",
    "AngleDataTokenizer": "angle.api.datasets",
    "ConfigError": "angle.errors",
    "ConvertConfig": "angle.config",
    "CorrelationEvaluator": "angle.api.scores",
    "DataError": "angle.errors",
    "DatasetFormats": "angle.api.datasets",
    "Encoder": "angle.modeling.encoder",
    "EvaluateConfig": "angle.config",
    "HubError": "angle.errors",
    "ModelConfig": "angle.config",
    "PoolingConfig": "angle.config",
    "Prompts": "angle.prompts",
    "Result": "angle.training.result",
    "TrainConfig": "angle.config",
    "TrainingError": "angle.errors",
    "build_config": "angle.config.build",
    "convert": "angle.export.sentence_transformers",
    "dry_run": "angle.training.dry_run",
    "evaluate": "angle.evaluation.report",
    "fit": "angle.api.training",
}

__all__ = [
    "AnglE",
    "AngleDataTokenizer",
    "ConfigError",
    "ConvertConfig",
    "CorrelationEvaluator",
    "DataError",
    "DatasetFormats",
    "Encoder",
    "EvaluateConfig",
    "HubError",
    "ModelConfig",
    "PoolingConfig",
    "Prompts",
    "Result",
    "TrainConfig",
    "TrainingError",
    "build_config",
    "convert",
    "dry_run",
    "evaluate",
    "fit",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__

"""Translate the arguments of the reference, angle_emb, to settings; those without an equivalent raise an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from angle.compat.options import OLD_WEIGHTS
from angle.config import EseConfig, LoraConfig, LossConfig
from angle.errors import ConfigError, nearest
from angle.training.precision import half_precision

#: The reference's documented defaults, which only `AnglE.fit` uses; everywhere else the schema's own apply.
FIT_DEFAULTS = {
    "train.batch_size": 32,
    "train.epochs": 1,
    "train.learning_rate": 1e-5,
    "train.warmup_steps": 1000,
    "train.logging_steps": 10,
    "train.eval_steps": 1000,
    "train.save_steps": 100,
    "train.save_total_limit": 1,
    "train.gradient_accumulation_steps": 1,
    "loss.cosine_w": 0.0,
    "loss.ibn_w": 20.0,
    "loss.angle_w": 1.0,
}

#: Keys that `argument_kwargs`, `trainer_kwargs`, `model_kwargs` and `lora_config_kwargs` accept, with their settings.
ARGUMENTS = {
    "max_steps": "train.max_steps",
    "num_train_epochs": "train.epochs",
    "weight_decay": "train.weight_decay",
    "lr_scheduler_type": "train.scheduler",
    "max_grad_norm": "train.max_grad_norm",
    "seed": "train.seed",
    "data_seed": "data.seed",
    "warmup_ratio": "train.warmup_steps",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "torch_compile": "train.compile",
    "run_name": "tracking.name",
}
TRAINER = {
    "teacher_name_or_path": "teacher.name_or_path",
    "teacher_pooling_strategy": "teacher.pooling",
    "ese_kl_temperature": "ese.kl_temperature",
    "ese_compression_size": "ese.compression_size",
    "apply_ese_pca": "ese.pca",
}
MODEL = {
    "torch_dtype": "model.dtype",
    "dtype": "model.dtype",
    "attn_implementation": "model.attn_implementation",
    "kernels": "model.kernels",
    "trust_remote_code": "model.trust_remote_code",
    "revision": "model.revision",
}
LORA = {
    "r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.target_modules",
}

Settings = dict[str, Any]


def translated(argument: str, given: Mapping[str, Any] | None, homes: Mapping[str, str]) -> Settings:
    """Return the settings, by dotted name, of an argument that is a mapping.

    Raises:
        ConfigError: a key has no equivalent setting.

    """
    settings: Settings = {}
    for key, value in (given or {}).items():
        if key not in homes:
            raise ConfigError(f"{argument} has {key!r}, which has no home here{_hint(key, homes)}")
        settings[homes[key]] = value
    return settings


def check_texts(rows: Sequence[Any], columns: Sequence[str]) -> None:
    """Raise TypeError unless every row is a text, or a mapping with a text for each field of the template.

    Args:
        rows: the rows to encode.
        columns: the template's fields other than `text`.

    """
    for number, row in enumerate(rows, 1):
        place = f"text {number} of {len(rows)}"
        if not isinstance(row, (str, Mapping)):
            raise TypeError(f"{place} is {row!r}: encode takes texts, or mappings.")
        cells: Mapping[str, Any] = {"text": row} if isinstance(row, str) else row
        missing = [name for name in ("text", *columns) if not isinstance(cells.get(name), str)]
        if missing:
            example = ", ".join(f"{name!r}: '...'" for name in ("text", *columns))
            raise TypeError(f"{place} has no text for {', '.join(missing)}: give mappings such as {{{example}}}.")


def check_given_once(given: Settings, argument_kwargs: Mapping[str, Any] | None) -> None:
    """Raise ConfigError if `fit` was given a setting twice: by its own name and by transformers'."""
    for key, value in (argument_kwargs or {}).items():
        setting = ARGUMENTS.get(key, "")
        if given.get(setting) is not None:
            own = setting.rsplit(".", 1)[-1]
            raise ConfigError(
                f"argument_kwargs has {key}={value} beside {own}={given[setting]}, which says the same: leave one out."
            )


def fit_settings(given: Settings, eval_strategy: str, save_strategy: str) -> Settings:
    """Return the settings of the training loop, with the reference's defaults for those not given.

    Raises:
        ConfigError: a strategy is unknown.

    """
    settings = FIT_DEFAULTS | {name: value for name, value in given.items() if value is not None}
    for name, strategy in (("eval", eval_strategy), ("save", save_strategy)):
        settings[f"train.{name}_steps"] = _steps(name, strategy, settings[f"train.{name}_steps"])
    return settings


def loss_settings(loss_kwargs: Mapping[str, Any] | None) -> Settings:
    """Return the settings of the loss.

    Raises:
        ConfigError: a name is unknown; if it was renamed, the message gives the new name.

    """
    known = {item.name: f"loss.{item.name}" for item in dataclasses.fields(LossConfig)}
    given = dict(loss_kwargs or {})
    for old, new in OLD_WEIGHTS.items():
        if old in given:
            raise ConfigError(f"loss_kwargs has {old!r}, which is called {new!r} now: write {new}={given[old]}.")
    return translated("loss_kwargs", given, known)


def lora_settings(lora_config_kwargs: Mapping[str, Any] | None) -> Settings:
    """Return the settings of a new adapter, with the reference's rank and scale as defaults."""
    given = dict(lora_config_kwargs or {})
    for fixed in ("task_type", "bias"):  # the reference's examples give them; only those values make sense here
        given.pop(fixed, None)
    return {"lora.enabled": True, "lora.r": 32, "lora.alpha": 32, "lora.dropout": LoraConfig().dropout} | translated(
        "lora_config_kwargs", given, LORA
    )


def trainer_settings(trainer_kwargs: Mapping[str, Any] | None, apply_ese: bool) -> Settings:
    """Return the settings of Espresso and of the teacher."""
    settings = translated("trainer_kwargs", trainer_kwargs, TRAINER)
    if apply_ese:
        settings = {"ese.enabled": True, "ese.compression_size": EseConfig().compression_size} | settings
    if settings.get("teacher.name_or_path") is not None:
        settings["teacher.enabled"] = True
        if settings.get("teacher.pooling") == "all":
            settings["teacher.pooling"] = "tokens"
    return settings


def refuse_unknown(function: Callable[..., Any], unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for arguments that a function does not have, naming the nearest one that it has."""
    for name in unknown:
        if name in OLD_WEIGHTS:
            hint = f"; it is called {OLD_WEIGHTS[name]!r} now, and stands in loss_kwargs."
        elif name in ARGUMENTS and "argument_kwargs" in known:
            hint = f"; write argument_kwargs={{{name!r}: ...}}."
        else:
            hint = _hint(name, known)
        raise TypeError(f"{function.__qualname__} has no argument {name!r}{hint}")


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return nearest(name, names) or f". Known are: {', '.join(names)}."


def said_precision() -> str:
    """Return the nearest precision to fp16 on this machine, and print it if it is another one."""
    precision = half_precision()
    if precision != "fp16":
        print(
            f"fp16 needs a GPU, and none is here: training goes on in {'float32' if precision == 'no' else precision}"
        )
    return precision


def _steps(name: str, strategy: str, steps: Any) -> int | None:
    """Return the value of train.eval_steps or train.save_steps."""
    known = {"steps": steps, "epoch": None, "no": 0}
    if strategy not in known:
        raise ConfigError(f"{name}_strategy={strategy} is not known. Choose one of: {', '.join(known)}.")
    value: int | None = known[strategy]
    return value


def merged(settings: dict[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings updated with further ones, which take precedence."""
    result = dict(settings)
    for key, value in further.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result

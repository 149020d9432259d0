"""Translate the Python arguments of angle_emb to settings; one without a counterpart is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from angle.compat.angle_emb_0_5 import ANGLE_EMB_0_5, teacher_pooling
from angle.compat.angle_emb_0_6 import ANGLE_EMB_0_6, note_on_version
from angle.compat.angle_emb_version import AngleEmbVersion
from angle.compat.training_arguments import (
    CALLBACKS,
    checked_lora_arguments,
    checked_loss_arguments,
)
from angle.config import LossConfig
from angle.errors import ConfigError, did_you_mean
from angle.training.precision import half_precision

#: The version whose arguments `AnglE` and `AnglE.fit` take.
ANGLE_EMB = ANGLE_EMB_0_5

#: Settings by dotted key.
Settings = dict[str, Any]


def fit_settings(given: Settings, eval_strategy: str, save_strategy: str) -> Settings:
    """Return the settings of the training loop, with angle_emb's defaults for those that are None.

    Raises:
        ConfigError: a strategy is unknown.

    """
    settings = ANGLE_EMB.python_defaults("fit") | {key: value for key, value in given.items() if value is not None}
    for name, strategy in (("eval", eval_strategy), ("save", save_strategy)):
        settings[f"train.{name}_steps"] = _steps(name, strategy, settings[f"train.{name}_steps"])
    return settings


def check_given_once(given: Settings, argument_kwargs: Mapping[str, Any] | None) -> None:
    """Raise ConfigError if `fit` was given a setting twice: by its own argument and by transformers'."""
    transformers_arguments = ANGLE_EMB.python_settings("argument_kwargs")
    own_names = {key: name for name, key in ANGLE_EMB.python_settings("fit").items()}
    for name, value in (argument_kwargs or {}).items():
        key = transformers_arguments.get(name, "")
        if given.get(key) is not None:
            raise ConfigError(
                f"argument_kwargs has {name}={value} beside {own_names[key]}={given[key]}, which says the same: leave "
                f"one out."
            )


def _steps(name: str, strategy: str, steps: int) -> int | None:
    """Return the value of train.eval_steps or train.save_steps for a strategy."""
    steps_of: dict[str, int | None] = {"steps": steps, "epoch": None, "no": 0}
    if strategy not in steps_of:
        raise ConfigError(f"{name}_strategy={strategy} is not known. Choose one of: {', '.join(steps_of)}.")
    return steps_of[strategy]


def version_of_fit(prompts: Mapping[str, str | None], loss_kwargs: Mapping[str, Any] | None) -> AngleEmbVersion:
    """Return the version whose arguments `fit` was given, and print it if that is the later one.

    Args:
        prompts: text_prompt, query_prompt and doc_prompt; None where not given.
        loss_kwargs: as in `AnglE.fit`.

    """
    given = {name for name, prompt in prompts.items() if prompt is not None} | set(loss_kwargs or {})
    if given.isdisjoint((*prompts, "cln_w")):
        return ANGLE_EMB_0_5
    print(note_on_version(ANGLE_EMB_0_6, given, ANGLE_EMB_0_6.python_settings("loss_kwargs")))
    return ANGLE_EMB_0_6


def prompt_settings(prompts: Mapping[str, str | None]) -> Settings:
    """Return the settings of text_prompt, query_prompt and doc_prompt."""
    roles = {"query": prompts["query_prompt"], "document": prompts["doc_prompt"]}
    given = {role: prompt for role, prompt in roles.items() if prompt is not None}
    settings: Settings = {"model.prompts": given} if given else {}
    if prompts["text_prompt"] is not None:
        settings["model.prompt"] = prompts["text_prompt"]
    return settings


def loss_settings(loss_kwargs: Mapping[str, Any] | None, version: AngleEmbVersion = ANGLE_EMB_0_5) -> Settings:
    """Return the settings of the loss, with the default weights of a version of angle_emb.

    Raises:
        ConfigError: a name is unknown; if it was renamed, the message gives the new name.

    """
    loss_kwargs = checked_loss_arguments(loss_kwargs)
    for name, value in loss_kwargs.items():
        if name in ANGLE_EMB.renamed:
            current = ANGLE_EMB.renamed[name]
            raise ConfigError(f"loss_kwargs has {name!r}, which is called {current!r} now: write {current}={value}.")
    all_settings = {field.name: f"loss.{field.name}" for field in dataclasses.fields(LossConfig)}
    settings = translate_mapping("loss_kwargs", loss_kwargs, all_settings)
    return version.python_defaults("loss_kwargs") | settings


def lora_settings(lora_config_kwargs: Mapping[str, Any] | None) -> Settings:
    """Return the settings of a new adapter, with angle_emb's defaults.

    Raises:
        ConfigError: a key has no counterpart.

    """
    defaults = ANGLE_EMB.python_defaults("lora_config_kwargs")
    values = checked_lora_arguments(lora_config_kwargs, defaults["lora.r"], defaults["lora.alpha"])
    return {"lora.enabled": True} | defaults | translate_mapping("lora_config_kwargs", values)


def trainer_settings(trainer_kwargs: Mapping[str, Any] | None, apply_ese: bool) -> Settings:
    """Return the settings of Espresso and of the teacher.

    Raises:
        ConfigError: a key has no counterpart.

    """
    if "callbacks" in (trainer_kwargs or {}):
        raise ConfigError(f"trainer_kwargs has {CALLBACKS}")
    settings = translate_mapping("trainer_kwargs", trainer_kwargs)
    if apply_ese:
        settings["ese.enabled"] = True
    if settings.get("teacher.name_or_path") is not None:
        settings["teacher.enabled"] = True
        if "teacher.pooling" in settings:
            settings["teacher.pooling"] = teacher_pooling(settings["teacher.pooling"])
    return settings


def translate_mapping(
    argument: str, values: Mapping[str, Any] | None, key_of: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings of an argument that is a mapping.

    Args:
        argument: the argument's name.
        values: the mapping; None: empty.
        key_of: the setting of each key; None: as angle_emb's table says.

    Raises:
        ConfigError: a key has no counterpart.

    """
    key_of = ANGLE_EMB.python_settings(argument) if key_of is None else key_of
    settings: Settings = {}
    for name, value in (values or {}).items():
        if name not in key_of:
            raise ConfigError(f"{argument} has {name!r}, which has no counterpart here{_hint(name, key_of)}")
        settings[key_of[name]] = value
    return settings


def refuse_unknown(function: Callable[..., Any], unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for arguments that a function does not have, naming the nearest one that it has."""
    for name in unknown:
        if name == "callbacks":
            raise TypeError(f"{function.__qualname__} takes no {CALLBACKS}")
        if name in ANGLE_EMB.renamed:
            current = ANGLE_EMB.renamed[name]
            place = ", and belongs in loss_kwargs" if current in ANGLE_EMB.python_settings("loss_kwargs") else ""
            hint = f"; it is called {current!r} now{place}."
        elif name in ANGLE_EMB.python_settings("argument_kwargs") and "argument_kwargs" in known:
            hint = f"; write argument_kwargs={{{name!r}: ...}}."
        else:
            hint = _hint(name, known)
        raise TypeError(f"{function.__qualname__} has no argument {name!r}{hint}")


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return did_you_mean(name, names) or f". Known are: {', '.join(names)}."


def precision_for_fp16() -> str:
    """Return the nearest precision to fp16 on this machine, and print it if it is another one."""
    precision = half_precision()
    if precision != "fp16":
        used = "float32" if precision == "no" else precision
        print(f"fp16 needs a GPU, and there is none: training goes on in {used}")
    return precision


def check_texts(rows: Sequence[Any], columns: Sequence[str]) -> None:
    """Raise TypeError unless every row is a text, or a mapping with a text for each field of the template.

    Args:
        rows: the rows to encode.
        columns: the template's fields other than `text`.

    """
    for number, row in enumerate(rows, 1):
        position = f"text {number} of {len(rows)}"
        if not isinstance(row, (str, Mapping)):
            raise TypeError(f"{position} is {row!r}: encode takes texts, or mappings.")
        cells: Mapping[str, Any] = {"text": row} if isinstance(row, str) else row
        missing = [name for name in ("text", *columns) if not isinstance(cells.get(name), str)]
        if missing:
            example = ", ".join(f"{name!r}: '...'" for name in ("text", *columns))
            raise TypeError(f"{position} has no text for {', '.join(missing)}: give mappings such as {{{example}}}.")


def merge_settings(settings: Mapping[str, Any], overriding: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings updated with others, which take precedence."""
    result = dict(settings)
    for key, value in overriding.items():
        current = result.get(key)
        if isinstance(current, Mapping) and isinstance(value, Mapping):
            value = merge_settings(current, value)
        result[key] = value
    return result

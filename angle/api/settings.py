"""The arguments of class AnglE as settings, by dotted name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from angle.compat import arguments
from angle.compat.arguments import Settings
from angle.compat.training_arguments import checked_model_arguments, split_training_arguments


def model_settings(
    model_kwargs: Mapping[str, Any] | None,
    settings: Settings,
    *,
    torch_dtype: object,
    apply_billm: bool,
    billm_model_class: str | None,
    kbit_kwargs: Mapping[str, Any] | None,
) -> Settings:
    """Return the settings of the model: `settings`, and what the other arguments of the constructor say.

    Raises:
        ConfigError: a key of `model_kwargs` has no equivalent setting.

    """
    settings = arguments.translate_mapping("model_kwargs", checked_model_arguments(model_kwargs)) | settings
    dtype = torch_dtype if torch_dtype is not None else settings.pop("model.dtype", None)
    if dtype is not None:
        settings["model.dtype"] = str(dtype).removeprefix("torch.")
    settings |= arguments.translate_mapping("kbit_kwargs", kbit_kwargs)
    if apply_billm:
        settings |= {"billm.enabled": True, "billm.model_class": billm_model_class}
    return settings


def training_settings(
    train: Settings,
    argument_kwargs: Mapping[str, Any] | None,
    trainer_kwargs: Mapping[str, Any] | None,
    loss_kwargs: Mapping[str, Any] | None,
    *,
    eval_strategy: str,
    save_strategy: str,
    apply_ese: bool,
    fp16: bool | None,
    bf16: bool | None,
    prompts: Mapping[str, str | None],
) -> Settings:
    """Return the settings of a training run: angle_emb's defaults, updated by the arguments of `AnglE.fit`.

    Args:
        train: the settings that are arguments of their own; None where not given.
        argument_kwargs: as in `AnglE.fit`, as are the others.
        trainer_kwargs: the same.
        loss_kwargs: the same.
        eval_strategy: the same.
        save_strategy: the same.
        apply_ese: the same.
        fp16: the same.
        bf16: the same.
        prompts: text_prompt, query_prompt and doc_prompt.

    Raises:
        ConfigError: a key has no equivalent setting, a setting is given twice, or a strategy is unknown.

    """
    arguments.check_given_once(train, argument_kwargs)
    settings = arguments.fit_settings(train, eval_strategy, save_strategy)
    version = arguments.version_of_fit(prompts, loss_kwargs)
    settings |= version.always
    settings |= arguments.prompt_settings(prompts) | arguments.loss_settings(loss_kwargs, version)
    settings |= arguments.trainer_settings(trainer_kwargs, apply_ese)
    argument_kwargs, by_value = split_training_arguments(argument_kwargs)
    settings |= arguments.translate_mapping("argument_kwargs", argument_kwargs) | by_value
    if fp16 or bf16:
        settings["train.mixed_precision"] = "bf16" if bf16 else arguments.precision_for_fp16()
    return settings

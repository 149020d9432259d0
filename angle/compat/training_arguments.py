"""Keys of angle_emb's mappings that have no setting of their own: ignored, translated by their value, or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from angle.errors import ConfigError

#: Arguments of transformers' TrainingArguments that could change nothing here: how its data loaders work, what it
#: shows, and what this loop does anyway.
NO_EFFECT_HERE = frozenset(
    (
        "average_tokens_across_devices", "dataloader_num_workers", "dataloader_persistent_workers",
        "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend", "ddp_find_unused_parameters",
        "ddp_timeout", "disable_tqdm", "do_eval", "do_predict", "do_train", "eval_on_start", "eval_strategy",
        "gradient_checkpointing_kwargs", "greater_is_better", "group_by_length", "include_tokens_per_second",
        "label_names", "load_best_model_at_end", "log_level", "log_level_replica", "logging_dir",
        "logging_first_step", "logging_nan_inf_filter", "logging_strategy", "overwrite_output_dir",
        "per_device_eval_batch_size", "prediction_loss_only", "remove_unused_columns", "save_on_each_node",
        "save_safetensors", "skip_memory_metrics", "torch_empty_cache_steps",
    )
)  # fmt: skip
#: What `report_to` may name, and the setting that does it.
SINKS: dict[str, dict[str, Any]] = {
    "none": {},
    "wandb": {"tracking.mode": "online"},
    "tensorboard": {"tracking.tensorboard": True},
    "mlflow": {"tracking.mlflow": True},
}
#: Schedulers of transformers that are, with its own defaults, one that has another name here.
SCHEDULERS = {"constant_with_warmup": "constant", "polynomial": "linear", "cosine_with_restarts": "cosine"}
#: Arguments of from_pretrained that are said elsewhere, and where.
ELSEWHERE = {
    "cache_dir": "set the environment variable HF_HUB_CACHE",
    "token": "log in once by `hf auth login`, or set the environment variable HF_TOKEN",
    "use_auth_token": "log in once by `hf auth login`, or set the environment variable HF_TOKEN",
}
CALLBACKS = (
    "callbacks, which this loop does not have: metrics are in metrics.jsonl of the run folder, and go to Weights & "
    "Biases, TensorBoard or MLflow by config={'tracking': {'mode': 'online'}}, {'tracking': {'tensorboard': True}} or "
    "{'tracking': {'mlflow': True}}; to stop early, give config={'train': {'patience': 3}}."
)


def split_training_arguments(argument_kwargs: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that have a setting each, and the settings of those that depend on their values.

    Raises:
        ConfigError: a value that cannot be had here.

    """
    rest: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in (argument_kwargs or {}).items():
        if name in NO_EFFECT_HERE or (value is None and name not in ("max_steps",)):
            continue
        if name == "report_to":
            for sink in [value] if isinstance(value, str) else value:
                if sink not in SINKS:
                    raise ConfigError(f"argument_kwargs has report_to={sink!r}: choose from {', '.join(SINKS)}.")
                settings |= SINKS[sink]
        elif name == "optim":
            if not str(getattr(value, "value", value)).startswith(("adamw_torch", "adamw_hf")):
                raise ConfigError(
                    f"argument_kwargs has optim={value!r}, but this loop trains with AdamW: leave it out."
                )
        elif name in ("fp16", "bf16"):
            settings |= {"train.mixed_precision": name} if value else {}
        elif name == "lr_scheduler_type":
            scheduler = str(getattr(value, "value", value))
            rest[name] = SCHEDULERS.get(scheduler, scheduler)
        else:
            rest[name] = value
    return rest, settings


def checked_model_arguments(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of from_pretrained that have a setting.

    Raises:
        ConfigError: one that is said elsewhere, or cannot be had.

    """
    rest = dict(model_kwargs or {})
    for name, instead in ELSEWHERE.items():
        if rest.pop(name, None) is not None:
            raise ConfigError(f"model_kwargs has {name!r}, which is not an argument here: {instead}.")
    device_map = rest.pop("device_map", None)
    if device_map not in (None, "auto") and not (isinstance(device_map, Mapping) and list(device_map) == [""]):
        raise ConfigError(
            f"model_kwargs has device_map={device_map!r}, but a model is on one device: give device='cuda:0', say, or "
            f"leave it out."
        )
    for name in ("low_cpu_mem_usage", "use_cache", "output_hidden_states"):
        rest.pop(name, None)
    return rest


def checked_lora_arguments(
    lora_config_kwargs: Mapping[str, Any] | None, default_r: int, default_alpha: int
) -> dict[str, Any]:
    """Return the arguments of an adapter that have a setting.

    Raises:
        ConfigError: one that cannot be had.

    """
    rest = dict(lora_config_kwargs or {})
    for fixed in ("task_type", "bias", "inference_mode"):  # given in examples; only those values make sense here
        rest.pop(fixed, None)
    if rest.pop("use_rslora", False):
        r, alpha = rest.get("r", default_r), rest.get("lora_alpha", default_alpha)
        raise ConfigError(
            f"lora_config_kwargs has use_rslora=True, which scales by lora_alpha / sqrt(r) instead of lora_alpha / r: "
            f"for the same scale leave it out and give lora_alpha={round(alpha * math.sqrt(r))}."
        )
    if rest.pop("modules_to_save", None):
        raise ConfigError(
            "lora_config_kwargs has modules_to_save, but beside adapters nothing is trained here: leave it out, or "
            "train all weights with apply_lora=False."
        )
    return rest


def checked_loss_arguments(loss_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of the loss that have a setting.

    Raises:
        ConfigError: the angle loss is to be divided by the dimensions.

    """
    rest = dict(loss_kwargs or {})
    pooling = rest.pop("angle_pooling_strategy", "sum")
    if pooling != "sum":
        raise ConfigError(
            f"loss_kwargs has angle_pooling_strategy={pooling!r}: here similarities are summed. For a mean, divide "
            f"angle_tau by the model's dimensions, such as angle_tau=20/768, and leave it out."
        )
    rest.pop("dataset_format", None)  # the rows say it
    return rest

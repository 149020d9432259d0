"""Translate a command line of angle_emb to settings, and note where the two differ."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from angle.compat.angle_emb_0_5 import ANGLE_EMB_0_5
from angle.compat.angle_emb_0_6 import ANGLE_EMB_0_6, note_on_version
from angle.compat.angle_emb_version import NO_EFFECT
from angle.compat.command_line import CommandLine
from angle.config import RUN_FILE, START_INDEX_VARIABLE
from angle.distributed.environment import is_multi_node, launch_start_time, world_size
from angle.errors import ConfigError

#: Options whose settings depend on more than the option's own value: the rules below set them.
SET_BY_RULES = (
    *("pretrained_model_path", "gradient_accumulation_steps", "fp16", "bf16", "seed", "query_prompt", "doc_prompt"),
    *("save_strategy", "save_steps", "eval_strategy", "eval_steps"),
)


@dataclass
class Translation:
    """The settings, by dotted key, that a command line of angle_emb stands for."""

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What differs from angle_emb, a line each."""


def translate(options: CommandLine) -> Translation:
    """Return the settings equivalent to angle_emb's command line, and notes on the differences.

    Raises:
        ConfigError: an option has no counterpart, or its value cannot work.

    """
    _refuse_unsupported(options)
    result = Translation(dict(options.version.always))
    by_name = options.version.by_name
    for option in by_name.values():
        given = option.name in options.given
        if option.requires and not options[option.requires]:
            if given:
                value = " 1" if by_name[option.requires].choices else ""
                result.notes.append(f"--{option.name} {NO_EFFECT}it needs --{option.requires}{value}")
        elif given and option.note.startswith(NO_EFFECT):
            result.notes.append(options.note(option.name))
        elif option.setting and option.name not in SET_BY_RULES and (given or option.default_applies):
            value = options[option.name]
            result.settings[option.setting] = value if option.to_setting is None else option.to_setting(value)
    for rule in (
        _version,
        _model,
        _data,
        _precision,
        _intervals,
        _accumulation,
        _seed,
        _environment,
        _corrected_defects,
    ):
        rule(options, result)
    result.settings = {key: value for key, value in result.settings.items() if value is not None}
    return result


def _refuse_unsupported(options: CommandLine) -> None:
    """Raise ConfigError for options that have no counterpart."""
    unsupported = {
        "coword_random_mask_rate": options.get("coword_random_mask_rate"),
        "wandb_log_model": (options["wandb_log_model"] or "none").lower() not in ("false", "none", "0"),
    }
    for name, requested in unsupported.items():
        if requested:
            raise ConfigError(f"--{name} {options[name]} {options.version.by_name[name].note}; leave it out.")
    for name in options.given:
        if isinstance(options[name], str) and "${" in options[name]:
            raise ConfigError(f"--{name} {options[name]} cannot work: ${{ would begin the name of another setting.")


def _version(options: CommandLine, result: Translation) -> None:
    """Note that the options are of the later version, and set the templates of queries and documents."""
    version = options.version
    if version is ANGLE_EMB_0_5:
        return
    result.notes.append(f"--{note_on_version(version, options.given, version.by_name)}")
    if version is not ANGLE_EMB_0_6:
        return
    prompts = {"query": options["query_prompt"], "document": options["doc_prompt"]}
    prompts = {role: prompt for role, prompt in prompts.items() if prompt is not None}
    if prompts:
        result.settings["model.prompts"] = prompts
        if options["text_prompt"] is not None:
            result.notes.append(options.note("text_prompt"))


def _model(options: CommandLine, result: Translation) -> None:
    """Set the weights to start from, and what belongs to them."""
    if options["pretrained_model_path"] is not None:
        result.settings["model.name_or_path"] = options["pretrained_model_path"]
        tokenizer = options["tokenizer_name_or_path"] or options["model_name_or_path"]
        result.settings["model.tokenizer_name_or_path"] = tokenizer
        if options["is_llm"]:
            result.notes.append(options.note("pretrained_model_path"))
    if options["pretrained_lora_path"] is not None:
        # angle_emb trains it further with --apply_lora, which here would add a new one on top.
        for key in [key for key in result.settings if key.startswith("lora.")]:
            del result.settings[key]
        ignored = sorted(name for name in options.given if name.startswith("lora_"))
        if not options["apply_lora"]:
            result.notes.append(options.note("pretrained_lora_path"))
        result.notes += [f"--{name} {NO_EFFECT}the adapter of --pretrained_lora_path has its own" for name in ignored]
    if options["pooling_strategy"] == "last":
        result.settings["model.end_token"] = False  # null would append one
    if "is_llm" in options.given and not options["is_llm"]:
        result.notes.append(options.note("is_llm"))
    if options["teacher_name_or_path"] is not None:
        result.settings["teacher.enabled"] = True
    start_index = os.environ.get(START_INDEX_VARIABLE, "")
    if options["apply_billm"] and start_index.removeprefix("-").isdigit():
        result.settings["billm.start_index"] = int(start_index)  # so that the printed line is complete


def _data(options: CommandLine, result: Translation) -> None:
    """Note which validation split is read, and that the template applies to it."""
    for suffix in ("", "_for_callback"):
        name, split = options[f"valid_name_or_path{suffix}"], f"valid_split_name{suffix}"
        if name is not None and split not in options.given and not Path(name).is_file():
            result.notes.append(options.note(split))
    if options.get("prompt_template") is not None and options["valid_name_or_path_for_callback"] is not None:
        result.notes.append(options.note("prompt_template"))


def _precision(options: CommandLine, result: Translation) -> None:
    """Set the precision: fp16 if given, or for decoders, else the best that this machine has instead."""
    given = "fp16" in options.given
    if options.get("bf16"):
        if options["fp16"]:
            raise ConfigError("--fp16 1 and --bf16 1 are two precisions: leave one of them out.")
        result.settings["train.mixed_precision"] = "bf16"
        return
    by_default = options["is_llm"] and not given and options.version is not ANGLE_EMB_0_6
    if not (options["fp16"] or by_default):
        return
    from angle.training.precision import half_precision

    precision = half_precision()
    if precision == "fp16" and given:
        result.notes.append(options.note("fp16"))
    elif precision == "fp16":
        result.notes.append("--fp16 defaults to 1 with --is_llm 1, as in angle_emb")
    elif given:
        used = "float32" if precision == "no" else precision
        result.notes.append(f"--fp16 1 needs a GPU, and there is none: the run goes on in {used}")
    if given or precision == "fp16":
        result.settings["train.mixed_precision"] = precision


def _intervals(options: CommandLine, result: Translation) -> None:
    """Set the steps between checkpoints and between evaluations."""
    for name in ("save", "eval"):
        strategy = options[f"{name}_strategy"]
        if name == "eval" and options["valid_name_or_path"] is None:
            continue  # the pairs that choose the best model are evaluated after every epoch, which is what null means
        result.settings[f"train.{name}_steps"] = {"steps": options[f"{name}_steps"], "epoch": None, "no": 0}[strategy]
        if strategy != "steps" and f"{name}_steps" in options.given:
            result.notes.append(f"--{name}_steps {NO_EFFECT}it needs --{name}_strategy steps")
    if options["save_strategy"] == "epoch":
        result.notes.append(options.note("save_strategy"))
    if None not in (options["valid_name_or_path"], options["valid_name_or_path_for_callback"]):
        result.notes.append(options.note("eval_strategy"))


def _accumulation(options: CommandLine, result: Translation) -> None:
    """Divide the accumulation steps, which count those of all processes together, among the processes."""
    name, processes = "gradient_accumulation_steps", world_size()
    steps = options[name]
    if steps < 1 or steps % processes:
        below = max(steps, 0) // processes * processes
        allowed = " or ".join(str(number) for number in (below, below + processes) if number)
        reason = f"it is divided among {processes} processes" if processes > 1 else "a step needs a batch"
        raise ConfigError(f"--{name} {steps} cannot work: {reason}; type --{name} {allowed}.")
    result.settings[f"train.{name}"] = steps // processes
    if processes > 1:
        result.notes += [
            f"--{name} {steps} counts all {processes} processes: {steps // processes} for each",
            "the processes train one model, on the negatives of all; in angle_emb their models drift apart",
        ]


def _seed(options: CommandLine, result: Translation) -> None:
    """Set the seed: the given one, else that of the run to be resumed, else a random one."""
    seed = options["seed"]
    if seed >= 0:
        if seed != 42:
            result.notes.append(options.note("seed"))
    elif (saved := _saved_seed(options["save_dir"])) is not None:
        seed = saved
        result.notes.append(f"--seed is {seed}, with which the run in --save_dir was started")
    elif is_multi_node():
        raise ConfigError("--seed -1 draws a random one, on each machine another: give it, such as --seed 42.")
    else:
        seed = int(launch_start_time() * 1000) % 2**31
        result.notes.append(f"--seed {options['seed']} drew {seed}")
    result.settings["train.seed"] = seed


def _saved_seed(folder: str | None) -> int | None:
    if folder is None or not (Path(folder) / RUN_FILE).is_file():
        return None
    from angle.training.run_folder import RunFolder

    return RunFolder(Path(folder)).requested_config().train.seed


def _environment(options: CommandLine, result: Translation) -> None:
    """Set what angle_emb takes from environment variables."""
    if options["wandb_project"] is not None:
        result.settings["tracking.mode"] = "online"
    elif "WANDB_PROJECT" in os.environ and os.environ.get("WANDB_MODE", "disabled") != "disabled":
        result.settings["tracking.project"] = os.environ["WANDB_PROJECT"]
    if options["save_dir"] is None:
        result.notes.append(options.note("save_dir"))


def _corrected_defects(options: CommandLine, result: Translation) -> None:
    """Note what angle_emb does differently by mistake."""
    has_teacher = options["teacher_name_or_path"] is not None
    differs = {
        "filter_duplicate": options["filter_duplicate"],
        "pooling_strategy": options["pooling_strategy"] in ("cls_avg", "max", "cls_max"),
        "apply_ese": options["apply_ese"],
        "teacher_name_or_path": has_teacher and options["apply_ese"],
        "teacher_pooling_strategy": has_teacher and options["teacher_pooling_strategy"] == "all",
    }
    result.notes += [options.note(name) for name, noted in differs.items() if noted]

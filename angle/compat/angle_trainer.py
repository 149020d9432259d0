"""The command of the reference, angle_emb: its 66 options, our training loop, and the equivalent train.py command.

angle-trainer --model_name_or_path google-bert/bert-base-uncased --train_name_or_path pairs.jsonl --ibn_w 20
torchrun --nproc_per_node=2 -m angle.angle_trainer --model_name_or_path ... --gradient_accumulation_steps 2
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from angle.cli.app import USER_ERRORS, agreed_on, errors_as_sentences
from angle.compat.options import BY_NAME, NO_EFFECT, Call, parse
from angle.config import CONFIG_FILE, RUN_FILE, START_INDEX_VARIABLE, TrainConfig
from angle.config.build import build_config
from angle.config.names import nested
from angle.config.overrides import override_words
from angle.distributed.environment import (
    is_multi_node,
    launch_command,
    launch_start_time,
    launch_time,
    print_once,
    world_size,
)
from angle.errors import ConfigError, HubError

#: Advice in error messages, as settings and as options of this command.
ADVICE = {"lora=r16": "--apply_lora 1", "billm=all": "--apply_billm 1", "teacher=none": "no --teacher_name_or_path"}

#: Options whose settings depend on more than the option's own value.
DECIDED_BELOW = (
    *("pretrained_model_path", "gradient_accumulation_steps", "fp16", "seed"),
    *("save_strategy", "save_steps", "eval_strategy", "eval_steps"),
)


def main() -> None:
    """Train as the command line says, after printing the equivalent train.py command and the differences."""
    with errors_as_sentences():
        call = parse(sys.argv[1:])
        with _options_named():
            settings, notes = translate(call)
            config = build_config(nested(settings), TrainConfig)
            words = override_words(config)
            print_once(
                "\n".join([f"same as {launch_command(world_size())} train.py {shlex.join(words)}", *_labelled(notes)])
            )
            if config.train.output_dir is None:
                config.train.output_dir = agreed_on(f"runs/{launch_time()}")

            from angle.distributed.process_group import shutdown_distributed
            from angle.training.loop import fit

            result = fit(config)
            print_once(result.summary(words))
            shutdown_distributed()
            if result.push_problem is not None:
                raise HubError(result.push_problem, result.score)


def translate(call: Call) -> tuple[dict[str, Any], list[str]]:
    """Return the settings, by dotted name, equivalent to the reference's command line, and notes on differences.

    Raises:
        ConfigError: an option has no counterpart, or its value cannot work.

    """
    settings: dict[str, Any] = {}
    notes: list[str] = []
    _refuse(call)
    for option in BY_NAME.values():
        given = option.name in call.given
        if option.needs and not call[option.needs]:
            if given:
                on = f"{option.needs} 1" if BY_NAME[option.needs].choices else option.needs
                notes.append(f"--{option.name} {NO_EFFECT}it needs --{on}")
        elif given and option.note.startswith(NO_EFFECT):
            notes.append(_note(option.name))
        elif option.setting and option.name not in DECIDED_BELOW and (given or option.applies):
            value = call[option.name]
            settings[option.setting] = value if option.convert is None else option.convert(value)
    for rule in (_model, _data, _precision, _intervals, _accumulation, _seed, _surroundings, _corrected):
        rule(call, settings, notes)
    return {name: value for name, value in settings.items() if value is not None}, notes


def _refuse(call: Call) -> None:
    """Raise ConfigError for options that have no counterpart."""
    wanted = {
        "load_mlm_model": call["load_mlm_model"] != 0,
        "coword_random_mask_rate": call["coword_random_mask_rate"] != 0,
        "wandb_log_model": (call["wandb_log_model"] or "none").lower() not in ("false", "none", "0"),
    }
    for name, given in wanted.items():
        if given:
            raise ConfigError(f"--{name} {call[name]} {BY_NAME[name].note}; leave it out.")
    for name in call.given:
        if isinstance(call[name], str) and "${" in call[name]:
            raise ConfigError(f"--{name} {call[name]} cannot work: ${{ would begin the name of another setting.")


def _model(call: Call, settings: dict[str, Any], notes: list[str]) -> None:
    if call["pretrained_model_path"] is not None:
        settings["model.name_or_path"] = call["pretrained_model_path"]
        settings["model.tokenizer_name_or_path"] = call["tokenizer_name_or_path"] or call["model_name_or_path"]
        if call["is_llm"]:
            notes.append(_note("pretrained_model_path"))
    if call["pretrained_lora_path"] is not None:
        # The reference trains it further, with or without --apply_lora; here --apply_lora would add a new one on top.
        for name in [name for name in settings if name.startswith("lora.")]:
            del settings[name]
        own = sorted(name for name in call.given if name.startswith("lora_"))
        notes += [f"--{name} {NO_EFFECT}the adapter of --pretrained_lora_path has its own" for name in own]
    if "is_llm" in call.given and not call["is_llm"]:
        notes.append(_note("is_llm"))
    if call["teacher_name_or_path"] is not None:
        settings["teacher.enabled"] = True
    start = os.environ.get(START_INDEX_VARIABLE, "")
    if call["apply_billm"] and start.removeprefix("-").isdigit():
        settings["billm.start_index"] = int(start)  # so that the printed line is complete


def _data(call: Call, settings: dict[str, Any], notes: list[str]) -> None:
    for end in ("", "_for_callback"):
        name, split = call[f"valid_name_or_path{end}"], f"valid_split_name{end}"
        if name is not None and split not in call.given and not Path(name).is_file():
            notes.append(_note(split))
    if call["prompt_template"] is not None and call["valid_name_or_path_for_callback"] is not None:
        notes.append(_note("prompt_template"))


def _precision(call: Call, settings: dict[str, Any], notes: list[str]) -> None:
    given = "fp16" in call.given
    if not (call["fp16"] or (call["is_llm"] and not given)):
        return
    from angle.training.precision import half_precision

    found = half_precision()
    if found == "fp16" and given:
        notes.append(_note("fp16"))
    elif found == "fp16":
        notes.append("--fp16 is 1 for --is_llm 1 unless given, as in angle_emb")
    elif given:
        goes_on = "float32" if found == "no" else found
        notes.append(f"--fp16 1 needs a GPU, and none is here: the run goes on in {goes_on}")
    if given or found == "fp16":
        settings["train.mixed_precision"] = found


def _intervals(call: Call, settings: dict[str, Any], notes: list[str]) -> None:
    for name in ("save", "eval"):
        strategy = call[f"{name}_strategy"]
        if name == "eval" and call["valid_name_or_path"] is None:
            continue  # the pairs that choose the best model are evaluated after every epoch, which is what null means
        settings[f"train.{name}_steps"] = {"steps": call[f"{name}_steps"], "epoch": None, "no": 0}[strategy]
        if strategy != "steps" and f"{name}_steps" in call.given:
            notes.append(f"--{name}_steps {NO_EFFECT}it needs --{name}_strategy steps")
    if call["save_strategy"] == "epoch":
        notes.append(_note("save_strategy"))
    if None not in (call["valid_name_or_path"], call["valid_name_or_path_for_callback"]):
        notes.append(_note("eval_strategy"))


def _accumulation(call: Call, settings: dict[str, Any], notes: list[str]) -> None:
    """Split the accumulation steps, which count those of all processes together, evenly across the processes."""
    name, processes = "gradient_accumulation_steps", world_size()
    steps = call[name]
    if steps < 1 or steps % processes:
        below = max(steps, 0) // processes * processes
        fits = " or ".join(str(number) for number in (below, below + processes) if number)
        why = f"it is shared out among {processes} processes" if processes > 1 else "a step needs a batch"
        raise ConfigError(f"--{name} {steps} cannot work: {why}; type --{name} {fits}.")
    settings[f"train.{name}"] = steps // processes
    if processes > 1:
        notes.append(f"--{name} {steps} is that of all {processes} processes: {steps // processes} for each")
        notes.append("the processes train one model, on the negatives of all; in angle_emb their models drift apart")


def _seed(call: Call, settings: dict[str, Any], notes: list[str]) -> None:
    """Set the seed: the given one, else that of the run to be resumed, else a drawn one."""
    seed = call["seed"]
    if seed >= 0:
        if seed != 42:
            notes.append(_note("seed"))
    elif (saved := _saved_seed(call["save_dir"])) is not None:
        seed = saved
        notes.append(f"--seed is {seed}, as the run in --save_dir was started with")
    elif is_multi_node():
        raise ConfigError("--seed -1 draws one, and several machines would draw several: give it, such as --seed 42.")
    else:
        seed = int(launch_start_time() * 1000) % 2**31
        notes.append(f"--seed {call['seed']} drew {seed}")
    settings["train.seed"] = seed


def _saved_seed(folder: str | None) -> int | None:
    if folder is None or not all((Path(folder) / name).is_file() for name in (CONFIG_FILE, RUN_FILE)):
        return None
    from angle.training.run_folder import RunFolder

    return RunFolder(Path(folder)).requested().train.seed


def _surroundings(call: Call, settings: dict[str, Any], notes: list[str]) -> None:
    if call["wandb_project"] is not None:
        settings["tracking.mode"] = "online"
    elif "WANDB_PROJECT" in os.environ and os.environ.get("WANDB_MODE", "disabled") != "disabled":
        settings["tracking.project"] = os.environ["WANDB_PROJECT"]
    if call["save_dir"] is None:
        notes.append(_note("save_dir"))


def _corrected(call: Call, settings: dict[str, Any], notes: list[str]) -> None:
    """Add notes on what the reference does differently by mistake."""
    if call["filter_duplicate"]:
        notes.append(_note("filter_duplicate"))
    if call["pooling_strategy"] in ("cls_avg", "max", "cls_max"):
        notes.append(_note("pooling_strategy"))
    if call["apply_ese"]:
        notes.append(_note("apply_ese"))
        if call["teacher_name_or_path"] is not None:
            notes.append(_note("teacher_name_or_path"))
    if call["teacher_name_or_path"] is not None and call["teacher_pooling_strategy"] == "all":
        notes.append(_note("teacher_pooling_strategy"))


def _note(name: str) -> str:
    return f"--{name} {BY_NAME[name].note}"


@contextmanager
def _options_named() -> Iterator[None]:
    """Add to an error message which options correspond to the settings in it."""
    options = {option.setting: f"--{name}" for name, option in reversed(BY_NAME.items()) if option.setting} | ADVICE
    try:
        yield
    except USER_ERRORS as error:
        text = str(error)
        named = [
            f"{word} is {option}" for word, option in options.items() if re.search(rf"\b{re.escape(word)}\b", text)
        ]
        raise type(error)(f"{text.rstrip('.')}. Here {', '.join(named)}." if named else text) from None


def _labelled(notes: list[str]) -> list[str]:
    return [f"{'note':8}{note}" for note in notes]


if __name__ == "__main__":
    main()

"""The command of angle_emb: its options, our training loop, and the equivalent train.py command.

angle-trainer --model_name_or_path google-bert/bert-base-uncased --train_name_or_path pairs.jsonl --ibn_w 20
torchrun --nproc_per_node=2 -m angle.angle_trainer --model_name_or_path ... --gradient_accumulation_steps 2
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from angle.cli.jobs import check_common_folder
from angle.cli.user_errors import USER_ERRORS, exit_on_user_error
from angle.compat.angle_emb_0_6 import version_of
from angle.compat.angle_emb_version import AngleEmbVersion
from angle.compat.command_line import option_names, parse
from angle.compat.translation import translate
from angle.config import TrainConfig
from angle.config.build import build_config
from angle.config.keys import unflatten
from angle.config.overrides import hydra_overrides
from angle.distributed.environment import check_launcher_environment, launch_command, launch_time, world_size
from angle.errors import HubError
from angle.terminal import labelled, print_once

#: Advice in error messages -> the same as options of this command.
ADVICE = {"lora=r16": "--apply_lora 1", "billm=all": "--apply_billm 1", "teacher=none": "no --teacher_name_or_path"}


def main() -> None:
    """Train as the command line says, after printing the equivalent train.py command and the differences."""
    with exit_on_user_error():
        check_launcher_environment()
        command_line = parse(sys.argv[1:], version_of(option_names(sys.argv[1:])))
        with _options_in_errors(command_line.version):
            translation = translate(command_line)
            config = build_config(unflatten(translation.settings), TrainConfig)
            overrides = hydra_overrides(config)
            equivalent_command = f"same as {launch_command(world_size())} train.py {shlex.join(overrides)}"
            print_once("\n".join([equivalent_command, *(labelled("note", note) for note in translation.notes)]))
            if config.train.output_dir is None:
                config.train.output_dir = check_common_folder(f"runs/{launch_time()}")

            from angle.distributed.process_group import shutdown_distributed
            from angle.training.loop import fit
            from angle.training.summary import print_summary

            result = fit(config)
            print_summary(result, overrides)
            shutdown_distributed()
            if result.push_problem is not None:
                raise HubError(result.push_problem, result.score)


@contextmanager
def _options_in_errors(version: AngleEmbVersion) -> Iterator[None]:
    """Add to an error message the options that correspond to the settings in it."""
    options = {option.setting: f"--{option.name}" for option in reversed(version.by_name.values()) if option.setting}
    try:
        yield
    except USER_ERRORS as error:
        message = str(error)
        mentioned = [
            f"{setting} is {option}"
            for setting, option in (options | ADVICE).items()
            if re.search(rf"\b{re.escape(setting)}\b", message)
        ]
        if not mentioned:
            raise
        raise type(error)(f"{message.rstrip('.')}. Here {', '.join(mentioned)}.") from None


if __name__ == "__main__":
    main()

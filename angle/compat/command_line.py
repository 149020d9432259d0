"""The command line of angle_emb parsed by the table of one of its versions."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from angle.compat.angle_emb_version import AngleEmbVersion
from angle.errors import ConfigError


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line of angle_emb."""

    version: AngleEmbVersion
    values: dict[str, Any]
    """The value of every option, by name."""
    given: frozenset[str]
    """The names of the options that the user typed."""

    def __getitem__(self, name: str) -> Any:
        """Return the value of an option."""
        return self.values[name]

    def get(self, name: str) -> Any:
        """Return the value of an option, None if this version has no such option."""
        return self.values.get(name)

    def note(self, name: str) -> str:
        """Return how an option differs from angle_emb."""
        return f"--{name} {self.version.by_name[name].note}"


def parse(words: Sequence[str], version: AngleEmbVersion) -> CommandLine:
    """Return the parsed command line; --help prints and exits.

    Raises:
        ConfigError: an option is unknown, renamed or missing, or a value is invalid.

    """
    parsed, unknown = _parser(version).parse_known_args(words)
    if unknown:
        raise ConfigError(_unknown_option(unknown[0], version))
    given = vars(parsed)
    values = {name: given.get(name, option.default) for name, option in version.by_name.items()}
    return CommandLine(version, values, frozenset(given))


def option_names(words: Sequence[str]) -> set[str]:
    """Return the names of the options on a command line, known or not."""
    return {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}


class _Parser(argparse.ArgumentParser):
    """Reports errors as the rest of the package does."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message.removeprefix('argument ')}.")


def _parser(version: AngleEmbVersion) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="angle-trainer",
        usage="angle-trainer --model_name_or_path MODEL --train_name_or_path ROWS [--option value ...]",
        description=f"Train with the command line of angle_emb {version.release}. It runs the loop of train.py, and "
        f"first prints the equivalent train.py command.",
        epilog="In brackets: the setting of train.py. The options that angle_emb 0.6.1 alone has are taken too, then "
        "with its defaults: --cln_w, --text_prompt, --query_prompt, --doc_prompt, --column_rename_mapping, --bf16, "
        "--gradient_checkpointing, --use_reentrant. On several GPUs: torchrun --nproc_per_node=N -m "
        "angle.angle_trainer ...",
        argument_default=argparse.SUPPRESS,
    )
    for heading, options in version.options.items():
        group = parser.add_argument_group(heading)
        for option in options:
            text = option.help
            if not (option.default is None or option.is_flag):
                text += f" (default: {option.default})"
            if option.setting:
                text += f" [{option.setting}]"
            if option.is_flag:
                group.add_argument(f"--{option.name}", action="store_true", help=text)
                continue
            group.add_argument(
                f"--{option.name}",
                type=switch if option.type is bool else option.type,
                choices=option.choices or None,
                metavar=None if option.choices else option.type.__name__.upper(),
                required=option.required,
                help=text,
            )
    return parser


def switch(text: str) -> int:
    """Return 0 or 1, also for false and true; if the text is invalid, argparse's message names this function."""
    return int({"false": "0", "true": "1"}.get(text.lower(), text))


def _unknown_option(word: str, version: AngleEmbVersion) -> str:
    """Return the error message for a word that is not an option."""
    name = word.split("=")[0].lstrip("-")
    if name in version.renamed:
        current = version.renamed[name]
        return f"--{name} is called --{current} now: type --{current}."
    if not word.startswith("--"):
        return f"{word} belongs to no option: write --name value, and quote values with spaces."
    near = difflib.get_close_matches(name, version.by_name, n=1)
    hint = f"; did you mean --{near[0]}?" if near else "; angle-trainer --help lists them all."
    return f"There is no option --{name}{hint}"

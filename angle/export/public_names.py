"""Names as strangers read them: of models and data on the hub as they are, of files and folders in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from angle.config import HUB_NAME, RUN_FILE, SAMPLE, SourceConfig, TrainSourceConfig
from angle.config.record import read_config
from angle.errors import ConfigError
from angle.export.architecture import read_architecture
from angle.modeling.locations import TINY, split_gguf

#: Beginnings of the arguments that say where output goes, not what is learned.
OUTPUT_ARGUMENTS = ("hub.", "hydra.", "tracking.", "tracking=", "train.output_dir=", "train.resume=")
#: Anything in a command that may be a path or a name on the hub.
PATH_LIKE = re.compile(r"[^\s,\[\]{}()'\":=]*/[^\s,\[\]{}()'\":=]*")
FILE_SUFFIX = re.compile(r"\.(csv|gguf|gz|json|jsonl|parquet|tsv)$")
#: A model's folder in the hub's cache.
CACHED = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/")
#: How many runs are followed back, each trained from the one before.
MAX_RUNS = 8
#: What stands in a command for a name that nobody else has, by the group of its setting.
PLACEHOLDERS = {"model": "MODEL", "teacher": "TEACHER", "data": "FILE"}


def name_on_hub(name: str) -> str | None:
    """Return the name that a model or data set may have on the hub; None for files, folders and what is built in."""
    cached = CACHED.search(name)
    if cached is not None:
        return "/".join(cached.groups())
    parts = name.split("/")
    is_name = name not in (SAMPLE, TINY) and len(parts) <= 2 and all(map(HUB_NAME.fullmatch, parts))
    return name if is_name else None


def known_base(base: str) -> str:
    """Return the model that a model was trained from or, of the last of several runs, that the first one began with."""
    for _ in range(MAX_RUNS):
        folder = next((each for each in (Path(base), Path(base).parent) if (each / RUN_FILE).is_file()), None)
        if folder is None or not Path(base).is_absolute():
            break
        try:
            base = read_config(folder).model.name_or_path
        except ConfigError:
            break
    return base


def describe_model(name: str) -> str:
    """Return what a model is, in Markdown: a link if it is on the hub, else what can be known of it."""
    first = known_base(name)
    on_hub = name_on_hub(split_gguf(first)[0])
    if first == TINY:
        text = "angle-hydra's built-in small BERT, which starts at random"
    elif on_hub is not None:
        text = f"[{on_hub}](https://huggingface.co/{on_hub})"
    else:
        architecture = read_architecture(Path(first))
        text = f"a model that is not on the hub{'' if architecture is None else f' ({architecture})'}"
    return text if first == name else f"{text} (trained further in an earlier run)"


def describe_source(source: SourceConfig, purpose: str, split: str, rows: int | None = None, unit: str = "rows") -> str:
    """Return what rows are: the names and the split of data on the hub, or just their purpose.

    Args:
        source: where they come from.
        purpose: what they are for, such as "training".
        split: the source's default split.
        rows: their number, if it is known.
        unit: what they are called.

    """
    count = "" if rows is None else f"{rows:,} "
    names = source.names()
    subset = " ".join(filter(None, [source.subset, source.split or split]))
    if names == [SAMPLE]:
        return f"{count}{purpose} {unit} of angle-hydra's sample ({subset})"
    on_hub = [name_on_hub(name) for name in names]
    public = [name for name in on_hub if name is not None]
    where = f"of {', '.join(public)} ({subset})" if public else "that are not public"
    others = " and of others that are not public" if public and None in on_hub else ""
    return f"{count}{purpose} {unit} {where}{others}"


def describe_training_rows(train: TrainSourceConfig, rows: int | None) -> str:
    """Return what the training rows are, and how many in all; of several sources each by its name."""
    if not train.sources:
        return describe_source(train, "training", "train", rows)
    count = "" if rows is None else f"{rows:,} rows: "
    described = (f"{name} ({describe_source(source, 'training', 'train')})" for name, source in train.sources.items())
    return f"{count}{', '.join(described)}"


def public_command(argv: Sequence[str], settings: Mapping[str, object]) -> list[str]:
    """Return the words of a train.py command, with placeholders for what is only on this machine.

    Args:
        argv: its arguments.
        settings: what they were resolved to, by dotted name.

    """
    words = []
    for word in argv:
        plain = word.lstrip("+")
        if plain.startswith(OUTPUT_ARGUMENTS):
            continue
        key, equals, _ = plain.partition("=")
        value = settings.get(key)
        names = [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
        placeholder = PLACEHOLDERS.get(key.partition(".")[0], "PATH")
        if equals and any(Path(name).is_absolute() for name in names):
            public = [placeholder if Path(name).is_absolute() else name for name in names]
            words.append(f"{key}={public[0] if len(public) == 1 else '[' + ','.join(public) + ']'}")
        else:
            words.append(without_paths(plain, placeholder))
    return words


def without_paths(argument: str, placeholder: str) -> str:
    """Return a text with a placeholder for every path in it; names on the hub stay."""

    def hide(match: re.Match[str]) -> str:
        text = match[0]
        if not text.strip("/"):
            return text
        is_path = text.startswith(("/", ".", "~")) or text.count("/") > 1 or FILE_SUFFIX.search(text)
        return placeholder if is_path else text

    return PATH_LIKE.sub(hide, argument)

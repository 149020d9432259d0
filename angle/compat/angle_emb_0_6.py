"""angle_emb 0.6.1: what its options, arguments and defaults have that those of 0.5.4 have not, and the reverse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from angle.compat.angle_emb_0_5 import ANGLE_EMB_0_5, SWITCH, if_on
from angle.compat.angle_emb_version import NO_EFFECT, AngleEmbVersion, Option
from angle.errors import ConfigError


def renamed_columns(mapping: str | None) -> dict[str, str] | None:
    """Return data.train.columns for angle_emb's column_rename_mapping, such as "question:query;answer:positive".

    Raises:
        ConfigError: it is no such list.

    """
    if mapping is None:
        return None
    pairs = [[name.strip() for name in pair.split(":")] for pair in mapping.split(";") if pair.strip()]
    if not pairs or not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise ConfigError(
            f"--column_rename_mapping {mapping!r} cannot work: it is a list of existing and new names, such as "
            f"--column_rename_mapping 'question:query;answer:positive'."
        )
    return {new: old for old, new in pairs}


#: Options of 0.5.4 that are gone, and the defaults that are others now, of the command and in Python.
_GONE = ("prompt_template", "fix_data", "coword_random_mask_rate")
_CHANGED: dict[str, dict[str, Any]] = {
    "filter_duplicate": {"default": 0},
    "ibn_w": {"default": 1.0, "python_default": 1.0},
    "angle_w": {"default": 0.02, "python_default": 0.02},
}
#: Options that are new, by heading of --help.
_ADDED: dict[str, tuple[Option, ...]] = {
    "Model": (
        Option("text_prompt", str, None, "template with {text} of text1 and text2", "model.prompt",
               note="also applies to queries and documents without a prompt of their own; in angle_emb it does not",
               python="fit.text_prompt"),
        Option("query_prompt", str, None, "template with {text} of the column query", "model.prompts",
               python="fit.query_prompt"),
        Option("doc_prompt", str, None, "template with {text} of the columns positive and negative", "model.prompts",
               python="fit.doc_prompt"),
        Option("gradient_checkpointing", int, 0, "whether to recompute activations in the backward pass",
               "model.gradient_checkpointing", SWITCH, if_on),
        Option("use_reentrant", int, 1, "no effect", choices=SWITCH,
               note=f"{NO_EFFECT}activations are recomputed as with 0"),
    ),
    "Data": (
        Option("column_rename_mapping", str, None, "columns to rename: 'existing:new;existing:new'",
               "data.train.columns", to_setting=renamed_columns),
    ),
    "Objective": (
        Option("cln_w", float, 1.0, "weight of the contrastive loss with negatives, where --ibn_w has none",
               "loss.cln_w", python="loss_kwargs.cln_w", python_default=1.0),
    ),
    "Training": (
        Option("bf16", bool, None, "whether to compute in bfloat16", "train.mixed_precision", SWITCH,
               python="fit.bf16"),
    ),
}  # fmt: skip

ANGLE_EMB_0_6 = replace(
    ANGLE_EMB_0_5,
    release="0.6.1",
    options={
        heading: (
            *(replace(each, **_CHANGED.get(each.name, {})) for each in options if each.name not in _GONE),
            *_ADDED.get(heading, ()),
        )
        for heading, options in ANGLE_EMB_0_5.options.items()
    },
    renamed={**ANGLE_EMB_0_5.renamed, "prompt_template": "text_prompt"},
)


def version_of(names: set[str]) -> AngleEmbVersion:
    """Return the version that options with these names are of; 0.5.4 where both would do.

    Raises:
        ConfigError: some are of one version alone, and some of the other.

    """
    earlier, later = (
        sorted(name for name in names if name in one.by_name and name not in other.by_name)
        for one, other in ((ANGLE_EMB_0_5, ANGLE_EMB_0_6), (ANGLE_EMB_0_6, ANGLE_EMB_0_5))
    )
    if earlier and later:
        raise ConfigError(
            f"--{earlier[0]} is an option of angle_emb {ANGLE_EMB_0_5.release} and --{later[0]} one of "
            f"{ANGLE_EMB_0_6.release}, whose defaults differ: leave one of them out."
        )
    return ANGLE_EMB_0_6 if later else ANGLE_EMB_0_5


def note_on_version(given: Iterable[str], names: Iterable[str]) -> str:
    """Return what to say where options of 0.6.1 are given: which, and which defaults differ because of it.

    Args:
        given: names of the options that are given.
        names: those of all that could be.

    """
    given = set(given)
    new = next(name for name in ANGLE_EMB_0_6.by_name if name in given and name not in ANGLE_EMB_0_5.by_name)
    defaults = [
        f"{name} {ANGLE_EMB_0_6.by_name[name].default}"
        for name in names
        if name not in given and (name in _CHANGED or name == "cln_w")
    ]
    use = f", so its defaults are used: {', '.join(defaults)}" if defaults else ""
    return f"{new} is of angle_emb {ANGLE_EMB_0_6.release}{use}"

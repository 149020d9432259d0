"""angle_emb 0.5.6 and 0.6.1: in what their options, arguments and defaults differ from those of 0.5.4."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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


def _later(
    version: AngleEmbVersion,
    release: str,
    gone: Collection[str],
    changed: Mapping[str, dict[str, Any]],
    added: Mapping[str, tuple[Option, ...]],
) -> AngleEmbVersion:
    """Return a later version: without some options, with others changed, and with new ones by heading of --help."""
    options = {
        heading: (
            *(replace(each, **changed.get(each.name, {})) for each in options if each.name not in gone),
            *added.get(heading, ()),
        )
        for heading, options in version.options.items()
    }
    return replace(version, release=release, options=options)


#: The weights of the losses in 0.5.5 and since, of the command and in Python, and their third loss.
_WEIGHTS: dict[str, dict[str, Any]] = {
    "ibn_w": {"default": 1.0, "python_default": 1.0},
    "angle_w": {"default": 0.02, "python_default": 0.02},
}
_CLN_W = Option("cln_w", float, 1.0, "weight of the contrastive loss with negatives, where --ibn_w has none",
                "loss.cln_w", python="loss_kwargs.cln_w", python_default=1.0)  # fmt: skip
ANGLE_EMB_0_5_6 = _later(ANGLE_EMB_0_5, "0.5.6", (), _WEIGHTS, {"Objective": (_CLN_W,)})

#: Options of 0.5.6 that are gone, and those that are new.
_GONE = ("prompt_template", "fix_data", "coword_random_mask_rate")
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
    "Training": (
        Option("bf16", bool, None, "whether to compute in bfloat16", "train.mixed_precision", SWITCH,
               python="fit.bf16"),
    ),
}  # fmt: skip

ANGLE_EMB_0_6 = replace(
    _later(ANGLE_EMB_0_5_6, "0.6.1", _GONE, {"filter_duplicate": {"default": 0}}, _ADDED),
    renamed={**ANGLE_EMB_0_5.renamed, "prompt_template": "text_prompt"},
)
#: Of several versions that have all of some options, the first is meant.
_VERSIONS = (ANGLE_EMB_0_5, ANGLE_EMB_0_6, ANGLE_EMB_0_5_6)


def version_of(names: set[str]) -> AngleEmbVersion:
    """Return the version that options with these names are of: 0.5.4, else 0.6.1, else 0.5.6.

    Raises:
        ConfigError: no version has them all.

    """
    known = {name for name in names if any(name in version.by_name for version in _VERSIONS)}
    version = next((version for version in _VERSIONS if known <= version.by_name.keys()), None)
    if version is None:
        earlier, later = (min(known - each.by_name.keys()) for each in (ANGLE_EMB_0_6, ANGLE_EMB_0_5_6))
        raise ConfigError(
            f"--{earlier} is an option of angle_emb {ANGLE_EMB_0_5.release} and --{later} one of "
            f"{ANGLE_EMB_0_6.release}, whose defaults differ: leave one of them out."
        )
    return version


def note_on_version(version: AngleEmbVersion, given: Iterable[str], names: Iterable[str]) -> str:
    """Return what to say where options of a later version are given: which, and which defaults differ because of it.

    Args:
        version: the later version.
        given: names of the options that are given.
        names: those of all that could be.

    """
    given, options, earlier = set(given), version.by_name, ANGLE_EMB_0_5.by_name
    new = next(name for name in options if name in given and name not in earlier)
    changed = {_CLN_W.name} | {name for name in earlier if name in options and options[name] != earlier[name]}
    defaults = [f"{name} {options[name].default}" for name in names if name not in given and name in changed]
    use = f", so its defaults are used: {', '.join(defaults)}" if defaults else ""
    return f"{new} is of angle_emb {version.release}{use}"

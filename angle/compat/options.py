"""The options of the command of the reference (angle_emb 0.5.4): one table, from which its command line is parsed.

The defaults here are the reference's. Only this table records how they differ from the schema in `angle/config/`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from angle.errors import ConfigError

#: Loss weights that the reference has renamed since its early releases: old name to new name.
OLD_WEIGHTS = {"w1": "cosine_w", "w2": "ibn_w", "w3": "angle_w"}

SWITCH = (0, 1)
INTERVALS = ("steps", "epoch", "no")
NO_EFFECT = "has no effect: "


@dataclass(frozen=True)
class Option:
    """An option and the setting that corresponds to it."""

    name: str
    kind: type
    default: Any
    meaning: str
    setting: str | None = None
    """The setting that it sets; None if it has no effect here, or is refused."""
    choices: tuple[int | str, ...] = ()
    convert: Callable[[Any], Any] | None = None
    """Converts the option's value to the setting's, where they differ."""
    needs: str | None = None
    """The option that must be on, or given, for this one to have an effect."""
    note: str = ""
    """How it differs from the reference, as the rest of a sentence that begins with the option."""
    required: bool = False
    applies: bool = True
    """Whether the default applies when the option is not given; false where that default was a defect."""

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return self.default is False


def _if_positive(value: int) -> int | None:
    return value if value > 0 else None


def _if_on(value: int) -> bool | None:
    return True if value else None


def _names(value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


#: The options by heading of --help.
OPTIONS: dict[str, tuple[Option, ...]] = {
    "Model": (
        Option("model_name_or_path", str, None, "the model: a hub name or a folder", "model.name_or_path",
               required=True),
        Option("tokenizer_name_or_path", str, None, "the tokenizer, if not the model's",
               "model.tokenizer_name_or_path"),
        Option("load_mlm_model", int, 0, "refused: it served --coword_random_mask_rate only", choices=SWITCH,
               note="is refused when 1: it served --coword_random_mask_rate only"),
        Option("pretrained_model_path", str, None, "weights to start from instead of --model_name_or_path's",
               "model.name_or_path", note="is taken for decoders too, with the tokenizer of --model_name_or_path"),
        Option("pretrained_lora_path", str, None, "a LoRA adapter to train further", "model.adapter"),
        Option("pooling_strategy", str, "cls", "cls, avg, max, last, cls_avg, cls_max or the index of a token",
               "pooling.strategy",
               note="depends on a text alone; in angle_emb some depend on its batch"),
        Option("maxlen", int, 512, "tokens a text may have", "model.max_length"),
        Option("prompt_template", str, None, "template with {text}, applied to every text", "model.prompt",
               note="counts for --valid_name_or_path_for_callback too; in angle_emb it does not"),
        Option("is_llm", int, 0, "whether the model is a decoder", "model.is_llm", SWITCH, _if_on,
               note="counts when it is 1: decoders are detected"),
        Option("torch_dtype", str, None, "type of a decoder's weights", "model.dtype",
               ("auto", "float32", "float16", "bfloat16"), needs="is_llm"),
        Option("apply_billm", int, 0, "whether layers from BiLLM_START_INDEX on attend in both directions",
               "billm.enabled", SWITCH, _if_on),
        Option("billm_model_class", str, None, "the decoder's class, such as LlamaForCausalLM", "billm.model_class",
               needs="apply_billm", note="is compared with the model: another class is an error"),
        Option("tokenizer_padding", str, "longest", "no effect", choices=("longest", "max_length"),
               note=f"{NO_EFFECT}padding never changes an embedding"),
        Option("tokenizer_padding_side", str, None, "the side of padding, if not the tokenizer's", "model.padding_side",
               ("left", "right")),
    ),
    "Data": (
        Option("train_name_or_path", str, None, "training rows: a file, a folder or a hub name",
               "data.train.name_or_path", required=True),
        Option("train_subset_name", str, None, "their subset on the hub", "data.train.subset"),
        Option("train_split_name", str, "train", "their split", "data.train.split", applies=False),
        Option("valid_name_or_path", str, None, "rows whose loss is reported", "data.valid.name_or_path"),
        Option("valid_subset_name", str, None, "their subset on the hub", "data.valid.subset",
               needs="valid_name_or_path"),
        Option("valid_split_name", str, "train", "their split", "data.valid.split", needs="valid_name_or_path",
               applies=False,
               note="is validation unless given; in angle_emb it is train"),
        Option("valid_name_or_path_for_callback", str, None, "pairs whose Spearman correlation chooses the best model",
               "data.valid_sts.name_or_path"),
        Option("valid_subset_name_for_callback", str, None, "their subset on the hub", "data.valid_sts.subset",
               needs="valid_name_or_path_for_callback"),
        Option("valid_split_name_for_callback", str, "train", "their split", "data.valid_sts.split",
               needs="valid_name_or_path_for_callback", applies=False,
               note="is validation unless given; in angle_emb it is train"),
        Option("filter_duplicate", int, 1, "what becomes of equal texts in a batch", "data.duplicates", SWITCH,
               lambda on: "mask" if on else "keep",
               note="keeps equal texts from being negatives; angle_emb drops rows that hold one"),
        Option("fix_data", int, 1, "no effect", choices=SWITCH, note=f"{NO_EFFECT}a text is cut so that its template "
               f"stays whole"),
        Option("dataset_seed", int, None, "seed of the order of rows, if not --seed", "data.seed"),
        Option("streaming", bool, False, "read the training rows as they come; needs --max_steps", "data.streaming"),
        Option("workers", int, 2, "no effect", note=f"{NO_EFFECT}texts are tokenised once, before training"),
        Option("coword_random_mask_rate", float, 0.0, "refused: only 0",
               note="is refused above 0: angle_emb trains masked words to be mask tokens"),
    ),
    "Objective": (
        Option("cosine_w", float, 0.0, "weight of the cosine ranking loss", "loss.cosine_w"),
        Option("ibn_w", float, 30.0, "weight of the in-batch contrastive loss", "loss.ibn_w"),
        Option("angle_w", float, 1.0, "weight of the angle ranking loss", "loss.angle_w"),
        Option("cosine_tau", float, 20.0, "multiplier of the cosine similarities", "loss.cosine_tau"),
        Option("ibn_tau", float, 20.0, "multiplier of the in-batch similarities", "loss.ibn_tau"),
        Option("angle_tau", float, 20.0, "multiplier of the angle similarities", "loss.angle_tau"),
        Option("apply_ese", int, 0, "whether all layers, and their first dimensions alone, are trained (Espresso)",
               "ese.enabled", SWITCH, _if_on, note="trains the last layer but one too, and compresses exactly"),
        Option("ese_kl_temperature", float, 1.0, "temperature of the compression's divergence", "ese.kl_temperature",
               needs="apply_ese"),
        Option("ese_compression_size", int, 128, "how many of the first dimensions", "ese.compression_size",
               needs="apply_ese"),
        Option("teacher_name_or_path", str, None, "a model to align with", "teacher.name_or_path",
               note="trains with --apply_ese too; in angle_emb that is logged alone"),
        Option("teacher_pooling_strategy", str, "cls", "its pooling; all: every token", "teacher.pooling",
               convert=lambda name: "tokens" if name == "all" else name, needs="teacher_name_or_path",
               note="aligns no padding, when it is all"),
    ),
    "LoRA and quantisation": (
        Option("apply_lora", int, 0, "whether adapters are trained, and the model's own weights are not",
               "lora.enabled", SWITCH, _if_on),
        Option("lora_r", int, 32, "rank", "lora.r", needs="apply_lora"),
        Option("lora_alpha", int, 32, "scale", "lora.alpha", needs="apply_lora"),
        Option("lora_dropout", float, 0.1, "dropout on the adapter's input", "lora.dropout", needs="apply_lora"),
        Option("lora_target_modules", str, None, "names of linear layers, with commas; default: all",
               "lora.target_modules", convert=_names, needs="apply_lora"),
        Option("load_kbit", int, None, "bits of the frozen weights; 16: not quantised", "model.load_kbit", (4, 8, 16),
               lambda bits: None if bits == 16 else bits,
               note="means not quantised, when it is 16"),
    ),
    "Training": (
        Option("epochs", int, 10, "passes over the training rows", "train.epochs"),
        Option("max_steps", int, -1, "optimiser steps; above 0 it decides instead of --epochs", "train.max_steps",
               convert=_if_positive),
        Option("batch_size", int, 32, "rows a process has in a batch", "train.batch_size"),
        Option("gradient_accumulation_steps", int, 1, "batches of all processes in a step",
               "train.gradient_accumulation_steps",
               note="is shared out among the processes, of which it must be a multiple"),
        Option("learning_rate", float, 1e-5, "peak learning rate", "train.learning_rate"),
        Option("warmup_steps", int, 100, "steps of linear warm-up", "train.warmup_steps"),
        Option("fp16", bool, None, "whether to compute in half precision", "train.mixed_precision", SWITCH,
               note="is followed; angle_emb computes in float32 where it is given"),
        Option("seed", int, -1, "seed; below 0: drawn", "train.seed",
               note="reaches the order of rows and dropout too; in angle_emb those stay with 42"),
    ),
    "Reports and output": (
        Option("save_dir", str, None, "the run folder", "train.output_dir",
               note="is runs/<date>/<time> unless given"),
        Option("logging_steps", int, 100, "steps between two lines of metrics", "train.logging_steps"),
        Option("save_steps", int, 100, "steps between two checkpoints", "train.save_steps"),
        Option("save_strategy", str, "steps", "when checkpoints are written", "train.save_steps", INTERVALS,
               note="writes ten checkpoints a run, when it is epoch"),
        Option("save_total_limit", int, 1, "checkpoints that are kept", "train.save_total_limit"),
        Option("eval_steps", int, 1000, "steps between two of these", "train.eval_steps", needs="valid_name_or_path"),
        Option("eval_strategy", str, "steps", "when the validation rows are measured", "train.eval_steps", INTERVALS,
               needs="valid_name_or_path",
               note="is for --valid_name_or_path_for_callback too, which angle_emb measures after every epoch"),
        Option("push_to_hub", int, 0, "whether the model is put on the hub", "hub.push", SWITCH, _if_on),
        Option("hub_model_id", str, None, "where: user/name", "hub.model_id", needs="push_to_hub"),
        Option("hub_private_repo", int, 1, "whether only you can see it", "hub.private", SWITCH, bool,
               needs="push_to_hub"),
        Option("wandb_project", str, None, "record in this project of Weights & Biases; WANDB_MODE wins",
               "tracking.project"),
        Option("wandb_log_model", str, None, "refused: only false",
               note="is refused unless false: models stay in the run folder, or go to the hub"),
    ),
}  # fmt: skip

BY_NAME = {option.name: option for options in OPTIONS.values() for option in options}

#: Options of other releases, mapped to their names in this one.
RENAMED = OLD_WEIGHTS | {"evaluation_strategy": "eval_strategy"}


@dataclass(frozen=True)
class Call:
    """A parsed command line of the reference."""

    values: dict[str, Any]
    """The value of every option, by name."""
    given: frozenset[str]
    """The names of the options that were given."""

    def __getitem__(self, name: str) -> Any:
        """Return the value of an option."""
        return self.values[name]


def parse(words: Sequence[str]) -> Call:
    """Return the parsed command line; --help prints and exits.

    Raises:
        ConfigError: an option is unknown, renamed or missing, or a value is invalid.

    """
    found, unknown = _parser().parse_known_args(words)
    if unknown:
        raise ConfigError(_unknown(unknown[0]))
    given = vars(found)
    values = {option.name: given.get(option.name, option.default) for option in BY_NAME.values()}
    return Call(values, frozenset(given))


class _Parser(argparse.ArgumentParser):
    """Reports errors as the rest of the package does."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message.removeprefix('argument ')}.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="angle-trainer",
        usage="angle-trainer --model_name_or_path MODEL --train_name_or_path ROWS [--option value ...]",
        description="Train as the command of angle_emb 0.5.4 did, with the options that it had. What runs is the loop "
        "of train.py, whose command line for the same is printed first.",
        epilog="In brackets: the setting of train.py. On several GPUs: torchrun --nproc_per_node=N -m "
        "angle.angle_trainer ...",
        argument_default=argparse.SUPPRESS,
    )
    for heading, options in OPTIONS.items():
        group = parser.add_argument_group(heading)
        for option in options:
            text = option.meaning
            if not (option.default is None or option.is_flag):
                text += f" (default: {option.default})"
            if option.setting:
                text += f" [{option.setting}]"
            if option.is_flag:
                group.add_argument(f"--{option.name}", action="store_true", help=text)
                continue
            group.add_argument(
                f"--{option.name}",
                type=switch if option.kind is bool else option.kind,
                choices=option.choices or None,
                metavar=None if option.choices else option.kind.__name__.upper(),
                required=option.required,
                help=text,
            )
    return parser


def switch(text: str) -> int:
    """Return 0 or 1, also for false and true; if the text is invalid, argparse's message names this function."""
    return int({"false": "0", "true": "1"}.get(text.lower(), text))


def _unknown(word: str) -> str:
    """Return the error message for a word that is not an option."""
    name = word.split("=")[0].lstrip("-")
    if name in RENAMED:
        return f"--{name} is called --{RENAMED[name]} now: type --{RENAMED[name]}."
    if not word.startswith("--"):
        return f"{word} belongs to no option: write --name value, and quote values with spaces."
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    hint = f"; did you mean --{near[0]}?" if near else "; angle-trainer --help lists them all."
    return f"There is no option --{name}{hint}"

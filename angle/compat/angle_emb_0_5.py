"""angle_emb 0.5.4, the last release that angle_emb's document describes: its options, arguments and defaults.

The defaults are angle_emb's. Only this table records how they differ from the schema in `angle/config/`.
"""

from __future__ import annotations

from angle.compat.angle_emb_version import NO_EFFECT, AngleEmbVersion, Option
from angle.config import OWN_DROPOUT

SWITCH = (0, 1)
INTERVALS = ("steps", "epoch", "no")


def _if_positive(value: int) -> int | None:
    return value if value > 0 else None


def if_on(value: int) -> bool | None:
    """Return True for a switch that is on; None leaves the setting as it is."""
    return True if value else None


def _comma_separated(value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def duplicates(filter_duplicate: int) -> str:
    """Return data.duplicates for angle_emb's filter_duplicate."""
    return "mask" if filter_duplicate else "keep"


def quantised_bits(bits: int | None) -> int | None:
    """Return model.load_kbit for angle_emb's load_kbit, in which 16 means not quantised."""
    return None if bits == 16 else bits


def teacher_pooling(strategy: str) -> str:
    """Return teacher.pooling for angle_emb's teacher_pooling_strategy."""
    return "tokens" if strategy == "all" else strategy


#: The options by heading of --help.
_OPTIONS: dict[str, tuple[Option, ...]] = {
    "Model": (
        Option("model_name_or_path", str, None, "the model: a hub name or a folder", "model.name_or_path",
               required=True, python="AnglE.model_name_or_path"),
        Option("tokenizer_name_or_path", str, None, "the tokenizer, if not the model's",
               "model.tokenizer_name_or_path", python="AnglE.tokenizer_name_or_path"),
        Option("load_mlm_model", int, 0, "no effect", choices=SWITCH,
               note=f"{NO_EFFECT}the language model's head serves --coword_random_mask_rate only"),
        Option("pretrained_model_path", str, None, "weights to start from instead of --model_name_or_path's",
               "model.name_or_path", note="works for decoders too, with the tokenizer of --model_name_or_path",
               python="AnglE.pretrained_model_path"),
        Option("pretrained_lora_path", str, None, "a LoRA adapter to train further", "model.adapter",
               note="is trained further without --apply_lora too; angle_emb ignores it then",
               python="AnglE.pretrained_lora_path"),
        Option("pooling_strategy", str, "cls", "cls, avg, max, last, cls_avg, cls_max or the index of a token",
               "pooling.strategy", note="depends on the text alone; in angle_emb some depend on its batch",
               python="AnglE.pooling_strategy"),
        Option("maxlen", int, 512, "maximum tokens per text", "model.max_length", python="AnglE.max_length"),
        Option("prompt_template", str, None, "template with {text}, applied to every text", "model.prompt",
               note="applies to --valid_name_or_path_for_callback too; in angle_emb it does not",
               python="AnglE.prompt_template"),
        Option("is_llm", int, 0, "whether the model is a decoder", "model.is_llm", SWITCH, if_on,
               note="matters only when it is 1: decoders are detected", python="AnglE.is_llm"),
        Option("torch_dtype", str, None, "type of a decoder's weights", "model.dtype",
               ("auto", "float32", "float16", "bfloat16"), requires="is_llm", python="AnglE.torch_dtype"),
        Option("apply_billm", int, 0, "whether layers from BiLLM_START_INDEX on attend in both directions",
               "billm.enabled", SWITCH, if_on, python="AnglE.apply_billm"),
        Option("billm_model_class", str, None, "the decoder's class, such as LlamaForCausalLM", "billm.model_class",
               requires="apply_billm", note="is compared with the model; another class is an error",
               python="AnglE.billm_model_class"),
        Option("tokenizer_padding", str, "longest", "no effect", choices=("longest", "max_length"),
               note=f"{NO_EFFECT}padding never changes an embedding"),
        Option("tokenizer_padding_side", str, None, "the side of padding, if not the tokenizer's", "model.padding_side",
               ("left", "right"), python="AnglE.tokenizer_padding_side"),
    ),
    "Data": (
        Option("train_name_or_path", str, None, "training rows: a file, a folder or a hub name",
               "data.train.name_or_path", required=True),
        Option("train_subset_name", str, None, "their subset on the hub", "data.train.subset"),
        Option("train_split_name", str, "train", "their split", "data.train.split", default_applies=False),
        Option("valid_name_or_path", str, None, "rows whose loss is reported", "data.valid.name_or_path"),
        Option("valid_subset_name", str, None, "their subset on the hub", "data.valid.subset",
               requires="valid_name_or_path"),
        Option("valid_split_name", str, "train", "their split", "data.valid.split", requires="valid_name_or_path",
               default_applies=False,
               note="defaults to validation; in angle_emb to train"),
        Option("valid_name_or_path_for_callback", str, None, "pairs whose Spearman correlation chooses the best model",
               "data.valid_sts.name_or_path"),
        Option("valid_subset_name_for_callback", str, None, "their subset on the hub", "data.valid_sts.subset",
               requires="valid_name_or_path_for_callback"),
        Option("valid_split_name_for_callback", str, "train", "their split", "data.valid_sts.split",
               requires="valid_name_or_path_for_callback", default_applies=False,
               note="defaults to validation; in angle_emb to train"),
        Option("filter_duplicate", int, 1, "whether equal texts in a batch are never each other's negatives",
               "data.duplicates", SWITCH, duplicates,
               note="keeps equal texts from being negatives; angle_emb drops their rows",
               python="fit.filter_duplicate"),
        Option("fix_data", int, 1, "no effect", choices=SWITCH, note=f"{NO_EFFECT}a text is cut so that its template "
               f"stays whole"),
        Option("dataset_seed", int, None, "seed of the row order, if not --seed", "data.seed",
               python="argument_kwargs.data_seed"),
        Option("streaming", bool, False, "read the training rows as they come; needs --max_steps", "data.streaming"),
        Option("workers", int, 2, "no effect", note=f"{NO_EFFECT}texts are tokenised once, before training"),
        Option("coword_random_mask_rate", float, 0.0, "refused: only 0",
               note="is refused above 0: angle_emb trains masked words to be mask tokens"),
    ),
    "Objective": (
        Option("cosine_w", float, 0.0, "weight of the cosine ranking loss", "loss.cosine_w",
               python="loss_kwargs.cosine_w", python_default=0.0),
        Option("ibn_w", float, 30.0, "weight of the in-batch contrastive loss", "loss.ibn_w",
               python="loss_kwargs.ibn_w", python_default=20.0),
        Option("angle_w", float, 1.0, "weight of the angle ranking loss", "loss.angle_w",
               python="loss_kwargs.angle_w", python_default=1.0),
        Option("cosine_tau", float, 20.0, "multiplier of the cosine similarities", "loss.cosine_tau",
               python="loss_kwargs.cosine_tau", python_default=20.0),
        Option("ibn_tau", float, 20.0, "multiplier of the in-batch similarities", "loss.ibn_tau",
               python="loss_kwargs.ibn_tau"),
        Option("angle_tau", float, 20.0, "multiplier of the angle similarities", "loss.angle_tau",
               python="loss_kwargs.angle_tau", python_default=20.0),
        Option("apply_ese", int, 0, "whether to train all layers, also on their first dimensions alone (Espresso)",
               "ese.enabled", SWITCH, if_on, note="also trains the second-to-last layer, and compresses exactly",
               python="fit.apply_ese"),
        Option("ese_kl_temperature", float, 1.0, "temperature of the compression's divergence", "ese.kl_temperature",
               requires="apply_ese", python="trainer_kwargs.ese_kl_temperature"),
        Option("ese_compression_size", int, 128, "number of leading dimensions", "ese.compression_size",
               requires="apply_ese", python="trainer_kwargs.ese_compression_size"),
        Option("teacher_name_or_path", str, None, "a model to align with", "teacher.name_or_path",
               note="also trains with --apply_ese; angle_emb only logs it",
               python="trainer_kwargs.teacher_name_or_path"),
        Option("teacher_pooling_strategy", str, "cls", "its pooling; all: every token", "teacher.pooling",
               to_setting=teacher_pooling, requires="teacher_name_or_path",
               note="leaves out padding when it is all", python="trainer_kwargs.teacher_pooling_strategy"),
    ),
    "LoRA and quantisation": (
        Option("apply_lora", int, 0, "whether to train adapters instead of the model's own weights",
               "lora.enabled", SWITCH, if_on),
        Option("lora_r", int, 32, "rank", "lora.r", requires="apply_lora",
               python="lora_config_kwargs.r", python_default=32),
        Option("lora_alpha", int, 32, "scale", "lora.alpha", requires="apply_lora",
               python="lora_config_kwargs.lora_alpha", python_default=32),
        Option("lora_dropout", float, 0.1, "dropout on the adapter's input", "lora.dropout", requires="apply_lora",
               python="lora_config_kwargs.lora_dropout", python_default=0.1),
        Option("lora_target_modules", str, None, "names of linear layers, separated by commas; default: all",
               "lora.target_modules", to_setting=_comma_separated, requires="apply_lora",
               python="lora_config_kwargs.target_modules"),
        Option("load_kbit", int, None, "bits of the frozen weights; 16: not quantised", "model.load_kbit", (4, 8, 16),
               quantised_bits,
               note="means not quantised when it is 16", python="AnglE.load_kbit"),
    ),
    "Training": (
        Option("epochs", int, 10, "passes over the training rows", "train.epochs",
               python="fit.epochs", python_default=1),
        Option("max_steps", int, -1, "optimiser steps; above 0 it decides instead of --epochs", "train.max_steps",
               to_setting=_if_positive, python="argument_kwargs.max_steps"),
        Option("batch_size", int, 32, "rows per process in a batch", "train.batch_size",
               python="fit.batch_size", python_default=32),
        Option("gradient_accumulation_steps", int, 1, "batches of all processes per optimiser step",
               "train.gradient_accumulation_steps",
               note="is divided among the processes, and must be a multiple of their number",
               python="fit.gradient_accumulation_steps", python_default=1),
        Option("learning_rate", float, 1e-5, "peak learning rate", "train.learning_rate",
               python="fit.learning_rate", python_default=1e-5),
        Option("warmup_steps", int, 100, "steps of linear warm-up", "train.warmup_steps",
               python="fit.warmup_steps", python_default=1000),
        Option("fp16", bool, None, "whether to compute in half precision", "train.mixed_precision", SWITCH,
               note="is honoured; angle_emb computes in float32 when it is given", python="fit.fp16"),
        Option("seed", int, -1, "seed; below 0: drawn", "train.seed",
               note="also sets row order and dropout; in angle_emb those always use 42",
               python="argument_kwargs.seed"),
    ),
    "Reports and output": (
        Option("save_dir", str, None, "the run folder", "train.output_dir",
               note="defaults to runs/<date>/<time>", python="fit.output_dir"),
        Option("logging_steps", int, 100, "steps between two lines of metrics", "train.logging_steps",
               python="fit.logging_steps", python_default=10),
        Option("save_steps", int, 100, "steps between two checkpoints", "train.save_steps",
               python="fit.save_steps", python_default=100),
        Option("save_strategy", str, "steps", "when checkpoints are written", "train.save_steps", INTERVALS,
               note="writes ten checkpoints per run when it is epoch"),
        Option("save_total_limit", int, 1, "checkpoints to keep", "train.save_total_limit",
               python="fit.save_total_limit", python_default=1),
        Option("eval_steps", int, 1000, "steps between two evaluations", "train.eval_steps",
               requires="valid_name_or_path", python="fit.eval_steps", python_default=1000),
        Option("eval_strategy", str, "steps", "when the validation rows are evaluated", "train.eval_steps", INTERVALS,
               requires="valid_name_or_path",
               note="also covers --valid_name_or_path_for_callback, which angle_emb measures after every epoch"),
        Option("push_to_hub", int, 0, "whether to push the model to the hub", "hub.push", SWITCH, if_on,
               python="fit.push_to_hub"),
        Option("hub_model_id", str, None, "the repository: user/name", "hub.model_id", requires="push_to_hub",
               python="fit.hub_model_id"),
        Option("hub_private_repo", int, 1, "whether a new repository is private", "hub.private", SWITCH, bool,
               requires="push_to_hub", python="fit.hub_private_repo"),
        Option("wandb_project", str, None, "log to this project of Weights & Biases; WANDB_MODE takes precedence",
               "tracking.project"),
        Option("wandb_log_model", str, None, "refused: only false",
               note="is refused unless false: models stay in the run folder, or go to the hub"),
    ),
}  # fmt: skip

#: What Python takes beyond the options: keys of transformers' TrainingArguments, of the trainer and of the model.
_PYTHON_ONLY = {
    "argument_kwargs.num_train_epochs": "train.epochs",
    "argument_kwargs.weight_decay": "train.weight_decay",
    "argument_kwargs.lr_scheduler_type": "train.scheduler",
    "argument_kwargs.max_grad_norm": "train.max_grad_norm",
    "argument_kwargs.warmup_ratio": "train.warmup_steps",
    "argument_kwargs.gradient_checkpointing": "model.gradient_checkpointing",
    "argument_kwargs.torch_compile": "train.compile",
    "argument_kwargs.run_name": "tracking.name",
    "argument_kwargs.adam_beta1": "train.adam_beta1",
    "argument_kwargs.adam_beta2": "train.adam_beta2",
    "argument_kwargs.adam_epsilon": "train.adam_epsilon",
    "argument_kwargs.push_to_hub": "hub.push",
    "argument_kwargs.hub_model_id": "hub.model_id",
    "argument_kwargs.hub_private_repo": "hub.private",
    "argument_kwargs.per_device_train_batch_size": "train.batch_size",
    "trainer_kwargs.apply_ese_pca": "ese.pca",
    "kbit_kwargs.use_gradient_checkpointing": "model.gradient_checkpointing",
    "model_kwargs.torch_dtype": "model.dtype",
    "model_kwargs.dtype": "model.dtype",
    "model_kwargs.attn_implementation": "model.attn_implementation",
    "model_kwargs.kernels": "model.kernels",
    "model_kwargs.trust_remote_code": "model.trust_remote_code",
    "model_kwargs.revision": "model.revision",
}

_RENAMED = {
    "w1": "cosine_w",
    "w2": "ibn_w",
    "w3": "angle_w",
    "evaluation_strategy": "eval_strategy",
}

ANGLE_EMB_0_5 = AngleEmbVersion(
    "0.5.4", _OPTIONS, _PYTHON_ONLY, _RENAMED, {"loss.reverse_w": 0.0, "train.dropout": OWN_DROPOUT}
)

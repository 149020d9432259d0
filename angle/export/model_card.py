"""The model card of a pushed model: what it is, how to load it, how good it is, and how it was trained.

It must not reveal anyone's folders, environment or secrets: a path is cut to its last component, and the command is
shown only if it is one of this project's, because another program's may contain anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from angle.config import HUB_NAME, SourceConfig, TrainConfig
from angle.data.sources import SAMPLE
from angle.evaluation.evaluator import Metric
from angle.evaluation.run_evaluators import TEST_METRIC, metric_named, validation_role
from angle.modeling.description import TINY, split_gguf
from angle.modeling.tokenizer import TokenContract, template_fields

#: Words of a command line that say where output goes, not what is learned.
ELSEWHERE = ("hub.", "hydra.", "tracking.", "tracking=", "train.output_dir=", "train.resume=")
#: Anything in a command that may be a path or a name on the hub.
WITH_SLASH = re.compile(r"[^\s,\[\]{}()'\":=]*/[^\s,\[\]{}()'\":=]*")
FILE_ENDING = re.compile(r"\.(csv|gguf|gz|json|jsonl|parquet|tsv)$")


class Reach(Enum):
    """Where a pushed model can be used outside this project."""

    SENTENCE_TRANSFORMERS = "as it is"
    CONVERTED = "once it is converted"
    NOWHERE = "nowhere"


@dataclass(frozen=True)
class Pushed:
    """Description of a pushed model."""

    model_id: str
    contract: TokenContract
    base: str
    """The model it was trained from: a name on the hub, `tiny`, or an absolute path."""
    has_adapters: bool
    dimensions: int | None
    """Width of the model's hidden states, None if only the base model's configuration has it."""
    reach: Reach


def model_card(model: Pushed, config: TrainConfig | None = None, record: dict[str, Any] | None = None) -> str:
    """Return the README.md of a model, metadata first.

    Args:
        model: the model that is pushed.
        config: the fully resolved settings of the run that trained it; None if there is no such run.
        record: the content of that run's run.json.

    """
    parts = [
        f"---\n{_metadata(model, config, record)}\n---",
        f"# {model.model_id.split('/')[1]}",
        _introduction(model),
        f"## Use\n\n{_use(model)}",
        *(_of_the_run(config, record) if config is not None and record is not None else ()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_the_run(config: TrainConfig, record: dict[str, Any]) -> list[str]:
    tables = [_table(("measured on", label), rows) for label, rows in _scores(config, record).items()]
    return [
        "\n\n".join(["## Scores", *tables]) if tables else "",
        f"## Training\n\n{_table(('', ''), _training(config, record))}",
        _command(record["command"]),
        f"Versions: {', '.join(f'{name} {number}' for name, number in record['versions'].items())}.",
    ]


def shown(name: str) -> str:
    """Return the public name of a model or data set: without its folders if it was found on this machine."""
    return Path(name).name if Path(name).is_absolute() else name


def _metadata(model: Pushed, config: TrainConfig | None, record: dict[str, Any] | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    library = "peft" if model.has_adapters else "transformers"
    tags = ["sentence-similarity", "feature-extraction", "angle"]
    if model.reach is Reach.SENTENCE_TRANSFORMERS:
        library = "sentence-transformers"
        tags.insert(0, library)
    scores: list[tuple[SourceConfig, str, Metric, float | None]] = []
    trained_on: list[str] = []
    if config is not None and record is not None:
        scores = [
            (config.data.test, "test", TEST_METRIC, record["result"]["test_after"]),
            (_validated_on(config), "validation", _best_metric(config), record["result"]["best_score"]),
        ]
        trained_on = [name for name in config.data.train.names() if _is_on_the_hub(name)]
    base = split_gguf(model.base)[0]
    data = ModelCardData(
        library_name=library,
        tags=tags,
        pipeline_tag="sentence-similarity",
        base_model=base if _is_on_the_hub(base) else None,
        datasets=trained_on or None,
        model_name=model.model_id.split("/")[1],
        eval_results=[
            EvalResult(
                task_type="semantic-similarity",
                task_name="Semantic Similarity",
                dataset_type=next(filter(_is_on_the_hub, source.names()), "unknown"),
                dataset_name=_name_of(source, split),
                dataset_config=source.subset,
                dataset_split=source.split or split,
                metric_type=metric.hub_type,
                metric_name=metric.description,
                metric_value=round(score, 6),
            )
            for source, split, metric, score in scores
            if score is not None and metric.hub_type is not None
        ]
        or None,
    )
    return str(data.to_yaml()).strip()


def _introduction(model: Pushed) -> str:
    if model.base == TINY:
        base = "angle-hydra's built-in small BERT, which starts at random"
    elif Path(model.base).is_absolute():
        base = f"a model in a folder called `{shown(model.base)}`"
    else:
        base = f"[{model.base}](https://huggingface.co/{split_gguf(model.base)[0]})"
    what = (
        "Adapters (LoRA) that make a sentence encoder of" if model.has_adapters else "A sentence encoder, trained from"
    )
    dimensions = model.contract.dimensions or model.dimensions
    width = "" if dimensions is None else f" An embedding has {dimensions} dimensions."
    return (
        f"{what} {base}, with the [AnglE](https://arxiv.org/abs/2309.12871) objective. It uses {model.contract}.{width}"
    )


def _use(model: Pushed) -> str:
    if model.has_adapters and Path(model.base).is_absolute():
        imports, name = "Encoder, ModelConfig", f'ModelConfig("{shown(model.base)}", adapter="{model.model_id}")'
    else:
        imports, name = "Encoder", f'"{model.model_id}"'
    columns = [field for field in template_fields(model.contract.prompt or "{text}") if field != "text"]
    texts = '["a sentence", "another one"]'
    if columns:
        row = ", ".join(f'"{column}": "..."' for column in columns)
        texts += f", [{{{row}}}, {{{row}}}]"
    code = f"```python\nfrom angle import {imports}\n\nembeddings = Encoder.load({name}).encode({texts})\n```"
    if model.reach is Reach.SENTENCE_TRANSFORMERS:
        return (
            f"{code}\n\nThe same embeddings with [sentence-transformers](https://sbert.net):\n\n```python\n"
            f"from sentence_transformers import SentenceTransformer\n\n"
            f'embeddings = SentenceTransformer("{model.model_id}").encode({texts})\n```'
        )
    if model.reach is Reach.CONVERTED:
        merges = "merges the adapters and " if model.has_adapters else ""
        given = f"model.name_or_path={model.model_id}"
        if "ModelConfig" in imports:
            given = f"model.name_or_path={shown(model.base)} model.adapter={model.model_id}"
        return (
            f"{code}\n\nsentence-transformers does not load it as it is; `python convert.py {given} "
            f"output_dir=my-encoder` {merges}writes a folder that it does."
        )
    return f"{code}\n\nIt loads in angle-hydra only: sentence-transformers has no way to say how its texts are read."


def _scores(config: TrainConfig, record: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return rows (what was measured on, value) by the label of what was measured."""
    result, test = record["result"], _name_of(config.data.test, "test")
    validation = _name_of(_validated_on(config), "validation")
    rows = [
        (_best_metric(config), f"{validation}, step {result['best_step']}", result["best_score"]),
        (TEST_METRIC, test, result["test_after"]),
        (TEST_METRIC, f"{test}, before training", result["test_before"]),
        (TEST_METRIC, f"{test}, of shared words alone", result["test_word_overlap"]),
    ]
    tables: dict[str, list[tuple[str, str]]] = {}
    for metric, name, score in rows:
        if score is not None:
            tables.setdefault(metric.label, []).append((name, f"{score:.4f}"))
    return tables


def _training(config: TrainConfig, record: dict[str, Any]) -> list[tuple[str, str]]:
    train, loss, hardware = config.train, config.loss, record["hardware"]
    rows = train.batch_size * train.gradient_accumulation_steps * hardware["processes"]
    length = f"{train.epochs} epochs" if train.max_steps is None else f"{train.max_steps} steps"
    terms = {
        "cosine": (loss.cosine_w, loss.cosine_tau),
        "in-batch": (loss.ibn_w, loss.ibn_tau),
        "angle": (loss.angle_w, loss.angle_tau),
    }
    table = {
        "data": f"{_name_of(config.data.train, 'train')}, format {config.data_format.name}",
        "length": f"{length} of {rows} rows; {record['texts']:,} texts in {record['seconds']:,.1f} s",
        "loss": " + ".join(f"{weight:g} {name} (tau {tau:g})" for name, (weight, tau) in terms.items() if weight),
        "learning rate": f"{train.learning_rate or 0:g}, {train.scheduler}, warm-up {train.warmup_steps:g}",
        "precision": "float32" if train.mixed_precision == "no" else train.mixed_precision,
        "seed": str(train.seed),
        "device": hardware["gpu"] or hardware["device"],
        "code": record["git_commit"] or "",
    }
    if config.lora.enabled:
        table["LoRA"] = f"rank {config.lora.r}, alpha {config.lora.alpha}, dropout {config.lora.dropout:g}"
    if config.ese.enabled:
        table["Espresso"] = f"all layers, {config.ese.compression_size} dimensions compressed"
    if config.teacher.enabled:
        table["teacher"] = f"{_without_folders(str(config.teacher.name_or_path))}, weight {config.teacher.weight:g}"
    return [(name, text) for name, text in table.items() if text]


def _command(argv: Sequence[str]) -> str:
    """Return the command line if it is train.py's; another program's may contain anything."""
    if not argv or Path(argv[0]).name != "train.py":
        return ""
    words = [_without_folders(word.lstrip("+")) for word in argv[1:] if not word.lstrip("+").startswith(ELSEWHERE)]
    which = "One of the runs of this sweep" if "-m" in words or "--multirun" in words else "The command"
    return f"{which}:\n\n```bash\n{shlex.join(['python', 'train.py', *words])}\n```"


def _without_folders(words: str) -> str:
    """Return `words` with every path cut to its last component; names on the hub stay."""

    def cut(found: re.Match[str]) -> str:
        text = found[0]
        is_path = text.startswith(("/", ".", "~")) or text.count("/") > 1 or FILE_ENDING.search(text)
        return (text.rstrip("/").rpartition("/")[2] or text) if is_path else text

    return WITH_SLASH.sub(cut, words)


def _best_metric(config: TrainConfig) -> Metric:
    return metric_named(config.train.best_metric)


def _validated_on(config: TrainConfig) -> SourceConfig:
    """Return the rows on which the best model was chosen."""
    on_sts = validation_role(config.train.best_metric) == "valid_sts" and config.data.valid_sts.names()
    return config.data.valid_sts if on_sts else config.data.valid


def _name_of(source: SourceConfig, split: str) -> str:
    """Return the display name of a source: its names without folders, then its subset and split."""
    are_files = any(Path(name).is_absolute() for name in source.names())
    known = {SAMPLE: "angle-hydra's sample"}
    names = ", ".join(known.get(name, shown(name)) for name in source.names())
    part = " ".join(filter(None, [source.subset, source.split or ("" if are_files else split)]))
    return f"{names} ({part})" if part else names


def _is_on_the_hub(name: str) -> bool:
    """Return whether a name can be one on the hub; files and folders are absolute paths by now."""
    parts = name.split("/")
    return name not in (SAMPLE, TINY) and len(parts) <= 2 and all(map(HUB_NAME.fullmatch, parts))


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    first, *others = (f"| {' | '.join(row)} |" for row in (head, *rows))
    return "\n".join([first, "|---|---|", *others])

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
from functools import partial
from pathlib import Path
from typing import Any

from angle.config import HUB_NAME, DataConfig, SourceConfig, TrainConfig
from angle.data.sources import SAMPLE
from angle.evaluation.evaluator import Metric
from angle.evaluation.run_evaluators import TEST_METRIC, metric_named, validation_purpose
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.locations import TINY, split_gguf
from angle.prompts import template_fields

#: Beginnings of the arguments that say where output goes, not what is learned.
OUTPUT_ARGUMENTS = ("hub.", "hydra.", "tracking.", "tracking=", "train.output_dir=", "train.resume=")
#: Anything in a command that may be a path or a name on the hub.
PATH_LIKE = re.compile(r"[^\s,\[\]{}()'\":=]*/[^\s,\[\]{}()'\":=]*")
FILE_SUFFIX = re.compile(r"\.(csv|gguf|gz|json|jsonl|parquet|tsv)$")


class SentenceTransformersSupport(Enum):
    """Whether sentence-transformers can load a pushed model."""

    AS_IS = "as it is"
    IN_VERSION_6 = "as it is, in version 6 or later"
    CONVERTED = "once it is converted"
    NEVER = "never"


LOADABLE = (SentenceTransformersSupport.AS_IS, SentenceTransformersSupport.IN_VERSION_6)


@dataclass(frozen=True)
class PushedModel:
    """What a model card says of the model itself."""

    model_id: str
    embedding_config: EmbeddingConfig
    base: str
    """The model it was trained from: a name on the hub, `tiny`, or an absolute path."""
    has_adapters: bool
    hidden_size: int | None
    """Width of the model's hidden states, None if only the base model's configuration has it."""
    sentence_transformers: SentenceTransformersSupport


@dataclass(frozen=True)
class Score:
    """What a run measured of its model."""

    metric: Metric
    source: SourceConfig
    """What it was measured on."""
    split: str
    """That source's default split."""
    value: float
    remark: str = ""
    """When it was measured, or of what."""
    is_of_this_model: bool = True
    """Whether the model that is pushed was measured, not what it is compared with."""


def model_card(model: PushedModel, config: TrainConfig | None = None, record: dict[str, Any] | None = None) -> str:
    """Return the README.md of a model, metadata first.

    Args:
        model: the model that is pushed.
        config: the fully resolved settings of the run that trained it; None if there is no such run.
        record: the content of that run's run.json.

    """
    scores: list[Score] = []
    trained_on: list[str] = []
    sections = [f"# {model.model_id.split('/')[1]}", _introduction(model), f"## Use\n\n{_use(model)}"]
    if config is not None and record is not None:
        scores = _scores(config.data, config.train.best_metric, record["result"])
        trained_on = config.data.train.names()
        sections += [
            _score_tables(scores),
            f"## Training\n\n{_table(('', ''), _training(config, record))}",
            _command(record["command"]),
            f"Versions: {', '.join(f'{name} {number}' for name, number in record['versions'].items())}.",
        ]
    sections.insert(0, f"---\n{_metadata(model, scores, trained_on)}\n---")
    return "\n\n".join(filter(None, sections)) + "\n"


def public_name(name: str) -> str:
    """Return the public name of a model or data set: without its folders if it was found on this machine."""
    return Path(name).name if Path(name).is_absolute() else name


def _metadata(model: PushedModel, scores: Sequence[Score], trained_on: Sequence[str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    library = "peft" if model.has_adapters else "transformers"
    tags = ["sentence-similarity", "feature-extraction", "angle"]
    if model.sentence_transformers in LOADABLE:
        library = "sentence-transformers"
        tags.insert(0, library)
    base = split_gguf(model.base)[0]
    data = ModelCardData(
        library_name=library,
        tags=tags,
        pipeline_tag="sentence-similarity",
        base_model=base if _may_be_on_the_hub(base) else None,
        datasets=list(filter(_may_be_on_the_hub, trained_on)) or None,
        model_name=model.model_id.split("/")[1],
        eval_results=[
            EvalResult(
                task_type="semantic-similarity",
                task_name="Semantic Similarity",
                dataset_type=next(filter(_may_be_on_the_hub, score.source.names()), "unknown"),
                dataset_name=_name_of(score.source, score.split),
                dataset_config=score.source.subset,
                dataset_split=score.source.split or score.split,
                metric_type=score.metric.hub_type,
                metric_name=score.metric.description,
                metric_value=round(score.value, 6),
            )
            for score in scores
            if score.is_of_this_model and score.metric.hub_type is not None
        ]
        or None,
    )
    return str(data.to_yaml()).strip()


def _introduction(model: PushedModel) -> str:
    if model.base == TINY:
        base = "angle-hydra's built-in small BERT, which starts at random"
    elif Path(model.base).is_absolute():
        base = f"a model in a folder called `{public_name(model.base)}`"
    else:
        base = f"[{model.base}](https://huggingface.co/{split_gguf(model.base)[0]})"
    subject = (
        "Adapters (LoRA) that make a sentence encoder of" if model.has_adapters else "A sentence encoder, trained from"
    )
    dimensions = model.embedding_config.dimensions or model.hidden_size
    width = "" if dimensions is None else f" An embedding has {dimensions} dimensions."
    return (
        f"{subject} {base}, with the [AnglE](https://arxiv.org/abs/2309.12871) objective. It uses "
        f"{model.embedding_config}.{width}"
    )


def _use(model: PushedModel) -> str:
    if model.has_adapters and Path(model.base).is_absolute():
        imports, name = "Encoder, ModelConfig", f'ModelConfig("{public_name(model.base)}", adapter="{model.model_id}")'
    else:
        imports, name = "Encoder", f'"{model.model_id}"'
    columns = [field for field in template_fields(model.embedding_config.prompt or "{text}") if field != "text"]
    texts = '["a sentence", "another one"]'
    if columns:
        row = ", ".join(f'"{column}": "..."' for column in columns)
        texts += f", [{{{row}}}, {{{row}}}]"
    code = f"```python\nfrom angle import {imports}\n\nembeddings = Encoder.load({name}).encode({texts})\n```"
    if model.sentence_transformers in LOADABLE:
        versions = "" if model.sentence_transformers is SentenceTransformersSupport.AS_IS else " 6 or later"
        return (
            f"{code}\n\nThe same embeddings with [sentence-transformers](https://sbert.net){versions}:\n\n```python\n"
            f"from sentence_transformers import SentenceTransformer\n\n"
            f'embeddings = SentenceTransformer("{model.model_id}").encode({texts})\n```'
        )
    if model.sentence_transformers is SentenceTransformersSupport.CONVERTED:
        merges = "merges the adapters and " if model.has_adapters else ""
        arguments = f"model.name_or_path={model.model_id}"
        if "ModelConfig" in imports:
            arguments = f"model.name_or_path={public_name(model.base)} model.adapter={model.model_id}"
        return (
            f"{code}\n\nsentence-transformers does not load it as it is; `python convert.py {arguments} "
            f"output_dir=my-encoder` {merges}writes a folder that it does."
        )
    return f"{code}\n\nIt loads in angle-hydra only: sentence-transformers has no way to say how its texts are read."


def _scores(data: DataConfig, best_metric: str | None, result: dict[str, Any]) -> list[Score]:
    """Return what a run measured, from its data, `train.best_metric` and the result in its record."""
    on_sts = validation_purpose(best_metric) == "valid_sts" and data.valid_sts.names()
    source, split, rows = data.valid_sts if on_sts else data.valid, "validation", ""
    if data.valid_split:
        source, split, rows = data.train, "train", "rows held out, "
    validation = partial(Score, metric_named(best_metric), source, split)
    test = partial(Score, TEST_METRIC, data.test, "test")
    before: Any = result.get("valid_before", {}).get(metric_named(best_metric).name)  # earlier versions have none
    scores = [
        validation(result["best_score"], f"{rows}step {result['best_step']}"),
        validation(before, f"{rows}before training", is_of_this_model=False),
        test(result["test_after"]),
        test(result["test_before"], "before training", is_of_this_model=False),
        test(result["test_word_overlap"], "of shared words alone", is_of_this_model=False),
    ]
    return [score for score in scores if score.value is not None]


def _score_tables(scores: Sequence[Score]) -> str:
    """Return the section of the scores, a table for each metric; nothing without scores."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for score in scores:
        measured_on = ", ".join(filter(None, [_name_of(score.source, score.split), score.remark]))
        tables.setdefault(score.metric.label, []).append((measured_on, score.metric.format(score.value)))
    sections = [_table(("measured on", label), rows) for label, rows in tables.items()]
    return "\n\n".join(["## Scores", *sections]) if sections else ""


def _training(config: TrainConfig, record: dict[str, Any]) -> list[tuple[str, str]]:
    train, hardware = config.train, record["hardware"]
    rows = train.batch_size * train.gradient_accumulation_steps * hardware["processes"]
    length = f"{train.epochs} epochs" if train.max_steps is None else f"{train.max_steps} steps"
    if record["result"].get("stopped_early") or record["result"].get("pruned"):
        length = f"stopped early, after {record['result']['steps']} steps"
    table = {
        "data": f"{_name_of(config.data.train, 'train')}, format {config.data_format.name}",
        "length": f"{length} of {rows} rows; {record['texts']:,} texts in {record['seconds']:,.1f} s",
        "loss": config.loss.summary(config.data_format.name),
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
    """Return a paragraph with the command if it is train.py's; another program's may contain anything."""
    if not argv or Path(argv[0]).name != "train.py":
        return ""
    words = [
        _without_folders(word.lstrip("+")) for word in argv[1:] if not word.lstrip("+").startswith(OUTPUT_ARGUMENTS)
    ]
    title = "One of the runs of this sweep" if "-m" in words or "--multirun" in words else "The command"
    return f"{title}:\n\n```bash\n{shlex.join(['python', 'train.py', *words])}\n```"


def _without_folders(argument: str) -> str:
    """Return a text with every path in it cut to its last component; names on the hub stay."""

    def strip(match: re.Match[str]) -> str:
        text = match[0]
        is_path = text.startswith(("/", ".", "~")) or text.count("/") > 1 or FILE_SUFFIX.search(text)
        return (text.rstrip("/").rpartition("/")[2] or text) if is_path else text

    return PATH_LIKE.sub(strip, argument)


def _name_of(source: SourceConfig, split: str) -> str:
    """Return the display name of a source: its names without folders, then its subset and split."""
    are_files = any(Path(name).is_absolute() for name in source.names())
    names = ", ".join("angle-hydra's sample" if name == SAMPLE else public_name(name) for name in source.names())
    subset = " ".join(filter(None, [source.subset, source.split or ("" if are_files else split)]))
    return f"{names} ({subset})" if subset else names


def _may_be_on_the_hub(name: str) -> bool:
    """Return whether a name can be one on the hub; files and folders are absolute paths by now."""
    parts = name.split("/")
    return name not in (SAMPLE, TINY) and len(parts) <= 2 and all(map(HUB_NAME.fullmatch, parts))


def _table(header: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    first, *rest = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return "\n".join([first, "|---|---|", *rest])

"""The model card: what a model is, how to use it and what that prints, how good it is, and how it was trained.

It stands in what is pushed to the hub and in converted folders. It must not reveal anyone's folders, environment or
secrets: what is only on this machine is told in words, the command is shown only if it is one of this project's,
because another program's may contain anything, and training rows only if that is asked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from angle.config import ANGLE, COSINE, IN_BATCH, POSITIVES, REVERSE, HubConfig, enumerate_words
from angle.config.keys import flatten
from angle.evaluation.run_evaluators import metric_named
from angle.export import citations
from angle.export.card_model import CardModel
from angle.export.card_scores import Score, log_table, score_tables, scores_of
from angle.export.card_usage import usage
from angle.export.markdown import literal, plain, table
from angle.export.public_names import describe_model, describe_training_rows, known_base, name_on_hub, public_command
from angle.export.trained_run import TrainedRun
from angle.modeling.locations import TINY, split_gguf
from angle.modeling.sentence_transformers_files import SIMILARITIES

#: The names that the hub's users search for: sentence-transformers' for the same terms.
LOSS_TAGS = {
    ANGLE.name: "AnglELoss",
    COSINE.name: "CoSENTLoss",
    IN_BATCH.name: "MultipleNegativesRankingLoss",
    POSITIVES.name: "MultipleNegativesRankingLoss",
    REVERSE.name: "MultipleNegativesSymmetricRankingLoss",
}
#: What similarity functions are called in text.
SIMILARITY_NAMES = {
    "cosine": "cosine similarity",
    "dot": "dot product",
    "euclidean": "negative Euclidean distance",
    "manhattan": "negative Manhattan distance",
}


def model_card(model: CardModel, run: TrainedRun | None = None) -> str:
    """Return the README.md of a model, metadata first.

    Args:
        model: the model.
        run: the run that trained it; None if there is no such run.

    """
    title = model.name.rpartition("/")[2] if model.is_on_hub else f"Sentence encoder from {_short_name(model.base)}"
    hub = HubConfig() if run is None else run.config.hub
    scores = [] if run is None else scores_of(run)
    sections = [
        f"---\n{_metadata(title, model, scores, hub, run)}\n---",
        f"# {title}",
        _introduction(model, run),
        table(("", ""), _description(model, hub)),
        f"## Use\n\n{usage(model)}",
    ]
    if run is not None:
        sections += [
            score_tables(scores),
            _soup(run),
            f"## Training\n\n{table(('', ''), _training(run))}",
            _samples(run),
            log_table(run),
            _command(run),
            f"Versions: {', '.join(f'{name} {number}' for name, number in run.record['versions'].items())}.",
            _citations(model, run),
        ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _short_name(base: str) -> str:
    name = name_on_hub(split_gguf(known_base(base))[0])
    return "a small BERT" if known_base(base) == TINY else "a local model" if name is None else name.split("/")[-1]


def _metadata(title: str, model: CardModel, scores: Sequence[Score], hub: HubConfig, run: TrainedRun | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    library = "peft" if model.has_adapters else "transformers"
    tags = ["sentence-similarity", "feature-extraction", "angle"]
    if model.is_loadable:
        library = "sentence-transformers"
        tags.insert(0, library)
    sources = [] if run is None else run.config.data.train.names()
    if run is not None:
        tags += _run_tags(run)
    languages = hub.languages()
    data = ModelCardData(
        library_name=library,
        tags=tags,
        language=languages if len(languages) > 1 else next(iter(languages), None),
        license=hub.license,
        pipeline_tag="sentence-similarity",
        base_model=name_on_hub(split_gguf(model.base if model.has_adapters else known_base(model.base))[0]),
        datasets=[name for source in sources if (name := name_on_hub(source)) is not None] or None,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="semantic-similarity",
                task_name="Semantic Similarity",
                dataset_type=next(filter(None, map(name_on_hub, score.source.names())), "unknown"),
                dataset_name=score.dataset,
                dataset_config=score.source.subset,
                dataset_split=score.source.split or score.split,
                metric_type=metric.hub_type,
                metric_name=metric.description,
                metric_value=round(value, 6),
            )
            for score in scores
            if score.is_of_this_model
            for metric, value in score.values()
            if metric.hub_type is not None
        ]
        or None,
    )
    return str(data.to_yaml()).strip()


def _run_tags(run: TrainedRun) -> list[str]:
    """Return the size of the training data and the losses, as the hub's users search for them."""
    config = run.config
    rows = run.record.get("rows", {}).get("train")
    tags = [] if rows is None else [f"dataset_size:{rows}"]
    losses = (LOSS_TAGS[term.name] for each in config.losses for term, _ in each.config.active_terms(each.format))
    tags += [f"loss:{loss}" for loss in dict.fromkeys(losses)]
    tags += [name for name, group in (("espresso", config.ese), ("billm", config.billm)) if group.enabled]
    return [*tags, "lora"] if config.lora.enabled else tags


def _introduction(model: CardModel, run: TrainedRun | None) -> str:
    subject = "Adapters (LoRA) that make a sentence encoder of" if model.has_adapters else "A sentence encoder from"
    base = describe_model(model.base)
    length = model.embedding_config.max_length
    limit = "" if length is None else f" of at most {length} tokens"
    width = "" if model.dimensions is None else f" of {model.dimensions} dimensions"
    trained = ""
    if run is not None:
        rows = describe_training_rows(run.config.data.train, run.record.get("rows", {}).get("train"))
        trained = f", trained with the [AnglE](https://arxiv.org/abs/2309.12871) objective on {rows}"
        if run.soup is not None:
            runs = len(run.soup["ingredients"])
            mean = f"the mean of the weights of {runs} such runs" if runs > 1 else "a run, mixed with its start"
            trained += f" ([model soup](https://arxiv.org/abs/2203.05482): {mean})"
    return (
        f"{subject} {base}{trained}. It turns a text{limit} into a vector{width}, in which what means the same is near "
        f"each other: for semantic similarity, search, clustering and classification."
    )


def _description(model: CardModel, hub: HubConfig) -> list[tuple[str, str]]:
    settings = model.embedding_config
    similarity = SIMILARITY_NAMES[settings.similarity or SIMILARITIES[0]]
    if settings.normalize and settings.similarity in (None, "cosine"):
        similarity += ", which for embeddings of unit length is the dot product too"
    named = enumerate_words(f"`{name}`" for name in settings.prompts) if settings.prompts else None
    rows = {
        "architecture": None if model.architecture is None else str(model.architecture),
        "text to embedding": plain(str(settings)),
        "dimensions": None if model.dimensions is None else str(model.dimensions),
        "similarity function": similarity,
        "prompts by name": named,
        "language": ", ".join(hub.languages()),
        "licence": hub.license,
    }
    return [(name, text) for name, text in rows.items() if text]


def _training(run: TrainedRun) -> list[tuple[str, str]]:
    config, record = run.config, run.record
    train, hardware = config.train, record["hardware"]
    rows = train.batch_size * train.gradient_accumulation_steps * hardware["processes"]
    epochs = "1 epoch" if train.epochs == 1 else f"{train.epochs} epochs"
    length = epochs if train.max_steps is None else f"{train.max_steps} steps"
    if record["result"].get("stopped_early") or record["result"].get("pruned"):
        length = f"stopped early, after {record['result']['steps']} steps"
    size = record.get("rows", {}).get("train")
    formats = ", ".join(dict.fromkeys(loss.format for loss in config.losses))
    run_soup, seeds = run.soup, [str(train.seed)]
    if run_soup is not None:
        length = f"{length} of {rows} rows in each run; {record['texts']:,} texts in {record['seconds']:,.1f} s in all"
        seeds = [str(each["seed"]) for each in run_soup["ingredients"]]
    else:
        length = f"{length} of {rows} rows; {record['texts']:,} texts in {record['seconds']:,.1f} s"
    described = {
        "data": f"{describe_training_rows(config.data.train, size)}, format {formats}",
        "length": length,
        "loss": "; ".join(loss.summary for loss in config.losses),
        "learning rate": f"{train.learning_rate or 0:g}, {train.scheduler}, warm-up {train.warmup_steps:g}",
        "precision": "float32" if train.mixed_precision == "no" else train.mixed_precision,
        "seed": ", ".join(seeds),
        "device": hardware["gpu"] or hardware["device"],
        "code": record["git_commit"] or "",
    }
    if config.lora.enabled:
        described["LoRA"] = f"rank {config.lora.r}, alpha {config.lora.alpha}, dropout {config.lora.dropout:g}"
    if config.ese.enabled:
        described["Espresso"] = f"all layers, {config.ese.compression_size} dimensions compressed"
    if config.teacher.enabled:
        teacher = str(config.teacher.name_or_path)
        name = "the model itself before training" if teacher == "self" else describe_model(teacher)
        described["teacher"] = f"{name}, weight {config.teacher.weight:g}"
    return [(name, text) for name, text in described.items() if text]


def _soup(run: TrainedRun) -> str:
    """Return what a soup is made of; nothing of a run that was trained. Folders are nobody else's business."""
    soup = run.soup
    if soup is None:
        return ""
    metric = metric_named(run.record["result"]["best_metric"])
    rows = [
        (f"run {number}", str(each["seed"]), f"{(1 - soup['base_share']) * each['weight']:.3f}",
         "–" if each["score"] is None else metric.format(each["score"]))
        for number, each in enumerate(soup["ingredients"], 1)
    ]  # fmt: skip
    if soup["base_share"]:
        rows.append(("the model that they started from", "–", f"{soup['base_share']:.3f}", "–"))
    how = {
        "uniform": "The weights are the mean of those of these runs.",
        "greedy": "The weights are the mean of those of these runs, each of which made the mean no worse on the "
        "validation rows; they were tried in the order of their scores.",
    }[soup["method"]]
    columns = ("", "seed", "weight", f"validation {metric.label}")
    return f"## Soup\n\n{how} What is said of training below is said of run 1.\n\n{table(columns, rows)}"


def _samples(run: TrainedRun) -> str:
    """Return the samples of the training rows, nothing without any."""
    if not run.samples:
        return ""
    columns = tuple(run.samples[0])
    rows = [[literal(row[column]) for column in columns] for row in run.samples]
    return f"Some training rows:\n\n{table(columns, rows)}"


def _command(run: TrainedRun) -> str:
    """Return a paragraph with the command if it is train.py's; another program's may contain anything."""
    argv = run.record["command"]
    if not argv or Path(argv[0]).name != "train.py":
        return ""
    words = public_command(argv[1:], flatten(run.config))
    title = "One of the runs of this sweep" if "-m" in words or "--multirun" in words else "The command"
    return f"{title}:\n\n```bash\n{shlex.join(['python', 'train.py', *words])}\n```"


def _citations(model: CardModel, run: TrainedRun) -> str:
    config, soup = run.config, run.soup
    entries = citations.citations(
        soup=soup is not None,
        cocktail=soup is not None and soup["base_share"] > 0,
        espresso=config.ese.enabled,
        billm=model.embedding_config.bidirectional_from is not None,
        lora=config.lora.enabled or model.has_adapters,
    )
    blocks = "\n\n".join(entries)
    return f"## Citation\n\n```bibtex\n{blocks}\n```"

"""The data of a run: read, checked and tokenised before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from angle.config import SAMPLE, DataConfig, NamedSourceConfig, SourceConfig
from angle.data.corpus import Corpus
from angle.data.corpus_builder import GuideFunction
from angle.data.loading import load_corpus
from angle.data.plan import BatchSpec, Mixture
from angle.data.purposes import purpose_of_source, source_label
from angle.data.retrieval import RetrievalSet, load_retrieval_set
from angle.data.split import hold_out
from angle.data.streaming import StreamingTrainingData
from angle.data.training_data import InMemoryTrainingData, TrainingData, TrainingSource
from angle.errors import ConfigError, DataError
from angle.evaluation.evaluator import EvaluationRows
from angle.evaluation.evaluators.sts import check_labels_vary, labels_vary, load_sts
from angle.modeling.tokenizer import TextTokenizer
from angle.prompts import ROLES, prompt_name
from angle.structures import DataFormat


@dataclass(frozen=True)
class RunData:
    """The corpora of a run; None where none was requested."""

    train: TrainingData
    valid: Corpus | None
    valid_sts: Corpus | None
    test: Corpus | None
    valid_retrieval: RetrievalSet | None = None

    def labels(self, source: str = "") -> npt.NDArray[np.float32] | None:
        """Return the labels of the training rows of a source, or with "" of all; None if there are none in memory."""
        sources = self.train.sources if isinstance(self.train, InMemoryTrainingData) else ()
        labels = [each.corpus.labels for each in sources if source in ("", each.name)]
        known = [own for own in labels if own is not None]
        return np.concatenate(known) if known else None

    @property
    def evaluated(self) -> dict[str, EvaluationRows | None]:
        """The rows that are evaluated on, by purpose."""
        return {
            "valid": self.valid,
            "valid_sts": self.valid_sts,
            "valid_retrieval": self.valid_retrieval,
            "test": self.test,
        }

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Hashes of the data trained and evaluated on."""
        corpora = {"train": self.train, **self.evaluated}
        return {purpose: corpus.fingerprint for purpose, corpus in corpora.items() if corpus is not None}

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows trained and evaluated on, by purpose; a stream's are unknown."""
        train = {"train": self.train.num_rows} if isinstance(self.train, InMemoryTrainingData) else {}
        return train | {purpose: len(corpus) for purpose, corpus in self.evaluated.items() if corpus is not None}

    @property
    def corpora(self) -> dict[str, EvaluationRows]:
        """All rows that are in memory, by purpose."""
        sources = self.train.sources if isinstance(self.train, InMemoryTrainingData) else ()
        train: dict[str, EvaluationRows] = {purpose_of_source(source.name): source.corpus for source in sources}
        return train | {purpose: corpus for purpose, corpus in self.evaluated.items() if corpus is not None}


def with_sample_splits(data: DataConfig) -> DataConfig:
    """Return the settings with the sample's own validation and test splits if no others are given."""
    held_out = (data.valid, data.valid_sts, data.test)
    if data.train.names() != [SAMPLE] or any(source.names() for source in held_out):
        return data
    validation = SourceConfig() if data.valid_split else SourceConfig(SAMPLE, split="validation")
    return replace(data, valid_sts=validation, test=SourceConfig(SAMPLE, split="test"))


def load_data(
    config: DataConfig,
    data_format: str,
    tokenizer: TextTokenizer,
    batch_spec: BatchSpec,
    *,
    needs_correlation: bool = True,
    guide: GuideFunction | None = None,
) -> RunData:
    """Read, check and tokenise everything that the run trains and evaluates on.

    Args:
        config: the sources.
        data_format: A, B or C for the training rows, or auto.
        tokenizer: turns texts into tokens.
        batch_spec: how the training rows form batches.
        guide: a guide's embeddings of the training texts.
        needs_correlation: whether the best model is chosen by the correlation with the validation rows' labels.

    Raises:
        ConfigError: a batch of a single row, which has no other to be compared with.
        DataError: anything wrong with the data.

    """
    train: TrainingData
    valid: Corpus | None = None
    if config.valid.names():
        valid = load_corpus(config.valid, "valid", tokenizer, limits=config.limits, negatives=config.negatives)
    if config.streaming:
        # Its thread tokenises while the model is saved, which changes the encoder's own tokenizer.
        train = StreamingTrainingData(
            config.train,
            data_format,
            tokenizer.copy(),
            batch_spec,
            config.stream_window,
            config.limits,
            config.negatives,
        )
        _check_several_rows(batch_spec.global_batch_size, train.formats[0], "train.batch_size")
    else:
        sources = [
            TrainingSource(
                _load_source(config, name, source, tokenizer, data_format, guide), name, _batch_size_of(source)
            )
            for name, source in config.train.by_name().items()
        ]
        if config.valid_split:
            (source,) = sources
            parts = hold_out(source.corpus, config.valid_split)
            rows, valid = (replace(part, unknown=tokenizer.unknown_fraction(part.tokens)) for part in parts)
            sources = [replace(source, corpus=rows)]
        train = InMemoryTrainingData(sources, batch_spec, mixture_of(config))
        _check_batches(train)
    valid_sts, test, valid_retrieval = _load_measured(config, tokenizer, valid, needs_correlation=needs_correlation)
    data = RunData(train, valid, valid_sts, test, valid_retrieval)
    trained = {train.fingerprint}
    if isinstance(train, InMemoryTrainingData):
        trained |= {source.corpus.fingerprint for source in train.sources}
    for purpose, evaluated in data.evaluated.items():
        if evaluated is not None and evaluated.fingerprint in trained:
            raise DataError(
                f"data.{purpose} has the rows that are trained on, so it would measure nothing: give others."
            )
    return data


def load_evaluated(
    config: DataConfig, data_format: str, tokenizer: TextTokenizer, *, needs_correlation: bool = True
) -> dict[str, EvaluationRows | None]:
    """Read what a run is evaluated on, by purpose; of what it trains on, only rows that others are held out from.

    Args:
        config: the sources.
        data_format: that of the training rows, A, B or C.
        tokenizer: turns texts into tokens.
        needs_correlation: as in `load_data`.

    Raises:
        DataError: anything wrong with the data.

    """
    valid: Corpus | None = None
    if config.valid.names():
        valid = load_corpus(config.valid, "valid", tokenizer, limits=config.limits, negatives=config.negatives)
    elif config.valid_split:
        ((name, source),) = config.train.by_name().items()
        held_out = hold_out(_load_source(config, name, source, tokenizer, data_format, None), config.valid_split)[1]
        valid = replace(held_out, unknown=tokenizer.unknown_fraction(held_out.tokens))
    valid_sts, test, valid_retrieval = _load_measured(config, tokenizer, valid, needs_correlation=needs_correlation)
    return {"valid": valid, "valid_sts": valid_sts, "valid_retrieval": valid_retrieval, "test": test}


def _load_measured(
    config: DataConfig, tokenizer: TextTokenizer, valid: Corpus | None, *, needs_correlation: bool
) -> tuple[Corpus | None, Corpus | None, RetrievalSet | None]:
    """Return what is measured beside `valid`: pairs with labels, the test set, and queries with judgements."""
    if config.valid_sts.names():
        valid_sts: Corpus | None = load_sts(config.valid_sts, "valid_sts", tokenizer, config.limits)
    else:
        valid_sts = valid if valid is not None and valid.format.name == "A" else None
        if valid_sts is not None and not needs_correlation and not labels_vary(valid_sts):
            valid_sts = None  # it is the loss that matters
        if valid_sts is not None:
            name = (
                f"data.valid_split={config.valid_split:g}"
                if config.valid_split
                else source_label("valid", config.valid)
            )
            check_labels_vary(valid_sts, name)
    test = load_sts(config.test, "test", tokenizer, config.limits) if config.test.names() else None
    valid_retrieval = None
    if config.valid_retrieval.name_or_path is not None:
        valid_retrieval = load_retrieval_set(config.valid_retrieval, "valid_retrieval", tokenizer, config.limits)
    return valid_sts, test, valid_retrieval


def _check_batches(train: InMemoryTrainingData) -> None:
    """Raise ConfigError if all batches of a source, or of all, have a single row."""
    if not train.loss_names:
        _check_several_rows(train.batch_specs[0].global_batch_size, train.formats[0], "train.batch_size")
        return
    for source, spec in zip(train.sources, train.batch_specs, strict=True):
        setting = "train.batch_size" if source.batch_size is None else f"data.train.sources.{source.name}.batch_size"
        _check_several_rows(spec.global_batch_size, source.corpus.format, setting)


def _check_several_rows(rows: int, data_format: DataFormat, setting: str) -> None:
    """Raise ConfigError if a batch has so few rows that they have no other to be compared with."""
    if rows == 1 and data_format.name != "B":
        raise ConfigError(
            f"{setting}=1 leaves a row no other row to be compared with: choose 2 or more, or use triples (format B)."
        )


def mixture_of(config: DataConfig) -> Mixture:
    """Return how the sources of training rows are drawn."""
    sources = config.train.sources
    weights = tuple(source.weight for source in sources.values() if source.weight is not None)
    sampling = config.sampling or ("weights" if weights else "proportional")
    return Mixture(config.mix == "together", sampling, weights, config.sampling_temperature)


def _batch_size_of(source: SourceConfig) -> int | None:
    return source.batch_size if isinstance(source, NamedSourceConfig) else None


def _load_source(
    config: DataConfig,
    name: str,
    source: SourceConfig,
    tokenizer: TextTokenizer,
    data_format: str,
    guide: GuideFunction | None,
) -> Corpus:
    """Return the training rows of a source; one of several may have a format of its own."""
    own = "auto"
    if isinstance(source, NamedSourceConfig):
        own, tokenizer = source.format, tokenizer.with_prompts(source.prompt, source.prompts)
    requested = data_format if own == "auto" else own
    purpose, hashes = purpose_of_source(name), config.mix == "together"
    corpus = load_corpus(
        source, purpose, tokenizer, requested, config.limits, config.negatives, hashes=hashes, guide=guide
    )
    if isinstance(source, NamedSourceConfig):
        check_prompts_used(source.prompts, [corpus.format], f"data.train.sources.{name}.")
    return corpus


def check_prompts_used(prompts: Iterable[str], formats: Iterable[DataFormat], prefix: str = "model.") -> None:
    """Raise ConfigError if a template is given for a role or a column that no training row has.

    Args:
        prompts: what templates are given for.
        formats: the formats of the rows.
        prefix: the group of settings that they stand in, with a dot.

    """
    formats = {data_format.name: data_format for data_format in formats}.values()
    roles = list(dict.fromkeys(role for data_format in formats for role in data_format.roles))
    names = [prompt_name(role) for role in roles]
    used = {*names, *(ROLES[name] for name in names if name in ROLES)}
    unused = next((name for name in prompts if name not in used), None)
    if unused is not None:
        named = " and ".join(data_format.name for data_format in formats)
        raise ConfigError(
            f"{prefix}prompts has {unused}, but the training rows are of format {named}, whose texts are "
            f"{' and '.join(roles)}: leave it out, or write {prefix}prompt, which stands for all texts "
            f"that have no template of their own."
        )


def check_text_lengths(data: RunData, pooling: str) -> None:
    """Raise DataError if texts are too short for a pooling that selects a token by its index."""
    if not pooling.isdigit():
        return
    for purpose, corpus in data.corpora.items():
        too_short = int((corpus.tokens.lengths <= int(pooling)).sum())
        if too_short:
            raise DataError(
                f"pooling.strategy={pooling} asks for token {pooling} (counted from 0), but {too_short} texts of "
                f"data.{purpose} are shorter; choose a smaller number, or cls, avg or last."
            )

"""Read all rows of a source into a corpus."""

from __future__ import annotations

from angle.config import LimitsConfig, SourceConfig
from angle.data import formats, sources
from angle.data.corpus import Corpus
from angle.data.corpus_builder import CorpusBuilder, Tokenizer
from angle.data.purposes import source_label
from angle.errors import DataError

#: Fractions of unknown tokens above which texts are noted, and refused: half of their words would mean nothing.
NOTED_UNKNOWN, MAX_UNKNOWN = 0.1, 0.5


def load_corpus(
    source: SourceConfig,
    purpose: str,
    tokenizer: Tokenizer,
    data_format: str = "auto",
    limits: LimitsConfig | None = None,
    negatives: str = "draw",
) -> Corpus:
    """Read, check and tokenise all rows of a source.

    Args:
        source: what to read.
        purpose: one of `angle.data.purposes`.
        tokenizer: turns texts into tokens.
        data_format: A, B, C or auto.
        limits: what is read at most; None: the defaults.
        negatives: what a list of negatives means, see `angle.config.DataConfig`.

    Raises:
        DataError: anything wrong with the data.

    """
    limits = limits or LimitsConfig()
    columns = tokenizer.columns
    tables = sources.open_tables(source, purpose, data_format, template_columns=columns, limits=limits)
    row_format = formats.common_format(tables, data_format, purpose, columns)
    builder = CorpusBuilder(row_format, source, purpose, columns, limits, negatives, tables)
    for table in tables:
        for number, row in table.rows:
            builder.add(table, number, row)
    corpus = builder.build(tokenizer)
    if corpus.unknown > MAX_UNKNOWN:
        raise DataError(
            f"{source_label(purpose, source)} is not in the model's language: {corpus.unknown:.0%} of its tokens are "
            f"unknown to the tokenizer, and at most {MAX_UNKNOWN:.0%} may be; choose another model, or the right "
            f"tokenizer by model.tokenizer_name_or_path=..."
        )
    return corpus


def note_on_unknown(corpus: Corpus, name: str) -> str | None:
    """Return what to say about a corpus of which much, but not too much, is unknown to the tokenizer."""
    if corpus.unknown <= NOTED_UNKNOWN:
        return None
    return (
        f"{corpus.unknown:.0%} of the tokens of {name} are unknown to the tokenizer, so texts that differ in them "
        f"alone look the same to the model; more than {MAX_UNKNOWN:.0%} would be refused"
    )

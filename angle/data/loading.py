"""Read all rows of a source into a corpus."""

from __future__ import annotations

from functools import partial

from angle.config import LimitsConfig, SourceConfig
from angle.data import formats, sources
from angle.data.corpus import Corpus
from angle.data.corpus_builder import CorpusBuilder, GuideFunction
from angle.data.distinct_texts import Tokenizer, template_columns
from angle.data.language import check_language
from angle.data.purposes import source_label


def load_corpus(
    source: SourceConfig,
    purpose: str,
    tokenizer: Tokenizer,
    data_format: str = "auto",
    limits: LimitsConfig | None = None,
    negatives: str = "draw",
    *,
    hashes: bool = False,
    guide: GuideFunction | None = None,
) -> Corpus:
    """Read, check and tokenise all rows of a source.

    Args:
        source: what to read.
        purpose: one of `angle.data.purposes`.
        tokenizer: turns texts into tokens.
        data_format: A, B, C or auto.
        limits: what is read at most; None: the defaults.
        negatives: what a list of negatives means, see `angle.config.DataConfig`.
        hashes: whether the corpus has hashes of its texts, to be compared with those of others.
        guide: a guide's embeddings of texts.

    Raises:
        DataError: anything wrong with the data.

    """
    limits = limits or LimitsConfig()
    columns = template_columns(tokenizer, sorted(sources.ROLES))
    tables = sources.open_tables(source, purpose, data_format, template_columns=columns, limits=limits)
    row_format = formats.common_format(tables, data_format, purpose, partial(template_columns, tokenizer))
    builder = CorpusBuilder(row_format, source, purpose, tokenizer, limits, negatives, tables)
    for table in tables:
        for number, row in table.rows:
            builder.add(table, number, row)
    corpus = builder.build(hashes=hashes, guide=guide)
    check_language(corpus.unknown, source_label(purpose, source))
    return corpus

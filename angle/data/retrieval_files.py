"""Where the parts of a retrieval set are: in a folder in the BEIR layout, or in a repository on the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from angle.config import LimitsConfig, RetrievalConfig, SourceConfig
from angle.data.arrow_files import hub_table
from angle.data.purposes import default_split, setting_name
from angle.data.sources import FILE_READERS, RenamedRows
from angle.data.table import Request, Table
from angle.errors import DataError

Part = Literal["corpus", "queries", "qrels"]


class _Columns(NamedTuple):
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    """Names that other tools write, each with ours."""


#: The columns of each part.
COLUMNS: dict[Part, _Columns] = {
    "corpus": _Columns(("_id", "text"), ("title",), (("id", "_id"),)),
    "queries": _Columns(("_id", "text"), (), (("id", "_id"),)),
    "qrels": _Columns(("query-id", "corpus-id"), ("score",), (("query_id", "query-id"), ("corpus_id", "corpus-id"))),
}
#: The thirteen sets of NanoBEIR, each with 50 queries, in the order in which they are published; and the name for all.
NANO_BEIR = (
    "NanoClimateFEVER", "NanoDBPedia", "NanoFEVER", "NanoFiQA2018", "NanoHotpotQA", "NanoMSMARCO", "NanoNFCorpus",
    "NanoNQ", "NanoQuoraRetrieval", "NanoSCIDOCS", "NanoArguAna", "NanoSciFact", "NanoTouche2020",
)  # fmt: skip
NANO_BEIR_ALL, NANO_BEIR_OWNER = "nano_beir", "zeta-alpha-ai"
#: Whose repositories have their judgements in another one, NAME-qrels.
BEIR_OWNER = "BeIR/"


def nano_beir_set(name: str) -> RetrievalConfig | None:
    """Return where a set of NanoBEIR is, by its published name in any case; None if it is none."""
    known = next((known for known in NANO_BEIR if known.lower() == name.lower()), None)
    return None if known is None else RetrievalConfig(f"{NANO_BEIR_OWNER}/{known}", split="train")


def is_retrieval_folder(path: Path) -> bool:
    """Return whether a folder has the parts of a retrieval set, or some of them, and is no data set of pairs."""
    return path.is_dir() and any(
        _files(path, part) or (path / part).is_dir() for part in ("corpus", "queries", "qrels")
    )


def open_part(source: RetrievalConfig, part: Part, purpose: str, limits: LimitsConfig) -> list[Table]:
    """Return the tables of a part, with columns as `COLUMNS` names them; those of qrels of the source's split alone.

    Raises:
        DataError: there is no such part, or no such split.

    """
    columns = COLUMNS[part]
    names = frozenset((*columns.required, *columns.optional, *(alias for alias, _ in columns.aliases)))
    request = Request(purpose, names.__contains__, limits, streaming=True)
    if (nano := nano_beir_set(source.name_or_path or "")) is not None:
        source = replace(nano, revision=source.revision, split=source.split or nano.split)
    name = source.name_or_path
    assert name is not None
    folder = Path(name).expanduser()
    split = source.split or default_split(purpose)
    if folder.exists() or name.startswith((".", "/", "~")):
        tables = _local_tables(folder, part, split, request)
    else:
        tables = [_hub_table(source, part, split, request)]
    return [_rename(table, columns) for table in tables]


def _hub_table(source: RetrievalConfig, part: Part, split: str, request: Request) -> Table:
    """Return a part on the hub: configurations corpus, queries and qrels, or judgements in a repository of their own.

    Corpus and queries have a single split, which is called as they are (BEIR), or as the judgements' (NanoBEIR).
    """
    assert source.name_or_path is not None
    is_beir = source.name_or_path.startswith(BEIR_OWNER)
    if part == "qrels":
        qrels = source.qrels or (f"{source.name_or_path}-qrels" if is_beir else None)
        name, subset = (qrels, None) if qrels is not None else (source.name_or_path, "qrels")
        revision = source.revision if qrels is None else None
        return hub_table(name, SourceConfig(name, subset, split, revision), split, request)
    split = part if is_beir or source.qrels is not None else split
    return hub_table(
        source.name_or_path, SourceConfig(source.name_or_path, part, split, source.revision), split, request
    )


def _local_tables(folder: Path, part: Part, split: str, request: Request) -> list[Table]:
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else f"does not exist; the folder you are in is {Path.cwd()}"
        raise request.error(folder, f"{what}: give a folder with corpus.jsonl, queries.jsonl and qrels/{split}.tsv.")
    files = _files(folder / "qrels", split) if part == "qrels" else _files(folder, part)
    if part == "qrels" and not files:
        raise _no_split(folder, split, request)
    if not files:
        raise request.error(
            folder,
            f"has no {part}.jsonl: a retrieval set has corpus.jsonl, queries.jsonl and qrels/{split}.tsv.",
        )
    tables = []
    for path in files:
        if path.stat().st_size == 0:
            raise request.error(path, "is empty.")
        ending = next(ending for ending in FILE_READERS if path.name.lower().removesuffix(".gz").endswith(ending))
        tables.append(FILE_READERS[ending](path, request))
    return tables


def _files(folder: Path, name: str) -> list[Path]:
    """Return the file of that name, of any kind that can be read, or the parquet files of a repository's clone."""
    endings = [f"{ending}{compressed}" for ending in FILE_READERS for compressed in ("", ".gz")]
    files = [path for ending in endings if (path := folder / f"{name}{ending}").is_file()]
    return files[:1] or sorted(folder.glob(f"{name}-*.parquet")) or sorted((folder / name).glob("*.parquet"))


def _no_split(folder: Path, split: str, request: Request) -> DataError:
    named = sorted({path.name.split(".")[0].split("-0")[0] for path in (folder / "qrels").glob("*.*")})
    if not named:
        return request.error(folder, f"has no judgements: a retrieval set has qrels/{split}.tsv.")
    setting = setting_name(request.purpose, "split")
    return request.error(
        folder, f"has no judgements qrels/{split}; it has {', '.join(named)}: type {setting}={named[0]}"
    )


def _rename(table: Table, columns: _Columns) -> Table:
    ours = {column: column for column in table.columns}
    ours |= {ours: alias for alias, ours in columns.aliases if alias in table.columns and ours not in table.columns}
    if ours.keys() <= set(table.columns):
        return table
    used = {name: column for name, column in ours.items() if name in (*columns.required, *columns.optional)}
    return replace(table, columns=tuple(used), rows=RenamedRows(table.rows, used))

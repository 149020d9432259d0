"""Embeddings as a table, a parquet file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from angle.data.texts import ID, TextRow
from angle.embedding.folder import Array

#: The columns beside that of ids: the number of the row, counted from 0, and the embedding.
ROW, EMBEDDING = "row", "embedding"


def write_table(path: Path, blocks: Iterable[tuple[int, list[TextRow]]], matrix: Array) -> None:
    """Write a parquet file with a row group for each block.

    Args:
        path: the file.
        blocks: all rows in order, for their ids.
        matrix: (N, D) their embeddings.

    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    number_type = arrow.from_numpy_dtype(matrix.dtype)
    columns = {ROW: arrow.int64(), EMBEDDING: arrow.list_(number_type, matrix.shape[1])}
    writer, first = None, 0
    try:
        for _, rows in blocks:
            if isinstance(rows[0].id, (int, str)) and ID not in columns:
                kind = arrow.int64() if isinstance(rows[0].id, int) else arrow.string()
                columns = {ROW: columns[ROW], ID: kind, EMBEDDING: columns[EMBEDDING]}
            part = matrix[first : first + len(rows)]
            values = {
                ROW: range(first, first + len(rows)),
                ID: [row.id for row in rows],
                EMBEDDING: arrow.FixedSizeListArray.from_arrays(arrow.array(part.reshape(-1)), matrix.shape[1]),
            }
            table = arrow.table({name: values[name] for name in columns}, schema=arrow.schema(columns))
            writer = writer or parquet.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
            writer.write_table(table)
            first += len(rows)
    finally:
        if writer is not None:
            writer.close()

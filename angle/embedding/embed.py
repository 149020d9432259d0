"""Embedding: texts of files in, a matrix or a table of their embeddings out.

Texts are read twice: first all of them are checked and counted, then each process reads and encodes its blocks. A block
is encoded by itself and by one process, so neither their number nor an interruption changes a bit of it.

N texts, D dimensions, B blocks.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from tqdm import tqdm

from angle.config import EmbedConfig
from angle.data.texts import TextRow, TextSource, with_text_column
from angle.distributed.process_group import best_device
from angle.embedding.folder import EMBEDDINGS_FILES, Array, EmbeddingFolder, PartialMatrix, check_space
from angle.embedding.inputs import Inputs
from angle.embedding.table import write_table
from angle.errors import ConfigError, DataError
from angle.files import relative_to_cwd, replace_file
from angle.modeling.encoder import Encoder
from angle.modeling.kernel_choice import kernels_to_skip, kernels_to_skip_from_main_process
from angle.modeling.tokenizer import TextTokenizer
from angle.prompts import check_role
from angle.structures import Tokens
from angle.terminal import announce, clear_announcement, labelled, print_once

if TYPE_CHECKING:
    from accelerate import PartialState

#: The group of settings that says where the texts are.
ROWS = "rows"


@dataclass(frozen=True)
class Embedding:
    """The outcome of embedding."""

    path: Path
    """The file with the embeddings."""
    record: dict[str, Any]
    """What is written beside it."""

    def __str__(self) -> str:
        """Return what there is, and how fast it was made."""
        record = self.record
        total = f"{record['texts']:,} embeddings of {record['dimensions']:,} dimensions"
        return (
            f"{total}, {record['encoded']:,} of them made in {record['seconds']:,.1f} s "
            f"({record['texts_per_second']:,.0f} a second)"
        )


def embed(config: EmbedConfig, processes: PartialState | None = None) -> Embedding:
    """Embed texts, or go on with it in a folder where that was interrupted.

    Args:
        config: the model, the texts and the options.
        processes: those of a launcher, each of which encodes some of the blocks; all of them call this.

    Raises:
        ConfigError, DataError: anything wrong with the settings or the data.
        DiskError: there is no space for the embeddings.

    """
    folder = EmbeddingFolder(Path(config.output_dir or "embedded"))
    folder.check_unfinished()
    inputs = _read(config, folder, processes)
    matrix = PartialMatrix(folder.partial, inputs.survey.first_rows, inputs.encoder.dimensions, config.dtype)
    is_main = processes is None or processes.is_main_process
    lock: AbstractContextManager[None] = folder.locked() if is_main else nullcontext()
    with lock:
        if is_main:
            _begin(inputs, folder, matrix)
        _wait(processes)
        if not matrix.path.is_file():
            raise ConfigError(f"output_dir={folder.path} is on no disk that all processes share: give one that is.")
        missing = np.flatnonzero(~matrix.done())
        _wait(processes)  # or one could count what another has just written, and they would share out other blocks
        encoded = int(np.diff(matrix.first_rows)[missing].sum())
        place, done = relative_to_cwd(folder.path), inputs.survey.num_rows - encoded
        state = f"has {done:,} of them already" if done else f"if this stops, the same with output_dir={place} goes on"
        print_once("\n".join([*inputs.describe(), labelled("folder", f"{place}: {state}")]))
        start = time.monotonic()
        _encode(inputs, matrix, missing, processes)
        _wait(processes)
        seconds = time.monotonic() - start
        record = inputs.record() | {
            "processes": 1 if processes is None else processes.num_processes,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "encoded": encoded,
            "seconds": round(seconds, 6),
            "texts_per_second": round(encoded / seconds, 1),
        }
        path = folder.path / EMBEDDINGS_FILES[config.format]
        if is_main:
            announce(f"writing {path}")
            assert matrix.done().all()
            folder.finish(record, path, lambda target: _place(inputs, matrix, target))
    return Embedding(path, record)


def _read(config: EmbedConfig, folder: EmbeddingFolder, processes: PartialState | None) -> Inputs:
    """Load the model, and read all texts a first time."""
    names = ", ".join(config.rows.names())
    if not names:
        raise ConfigError(
            "rows.name_or_path is missing: give a file with a text in each row, for example "
            "rows.name_or_path=corpus.jsonl."
        )
    announce(f"reading {names}")
    source = with_text_column(config.rows, ROWS, config.limits)
    announce(f"loading {config.model.name_or_path}")
    encoder = _load(config, folder, processes)
    tokenizer = _tokenizer_for(encoder, config.role)
    announce(f"reading {names}")
    texts = TextSource(source, ROWS, config.limits, tokenizer.columns, config.format == "parquet")
    return Inputs(config, encoder, tokenizer, texts, texts.survey(lambda row: _tokens(tokenizer, [row])))


def _load(config: EmbedConfig, folder: EmbeddingFolder, processes: PartialState | None) -> Encoder:
    """Return the model, with the kernels that earlier blocks were encoded with: others round differently."""
    model, begun = config.model, folder.partial_record()
    if begun is not None:
        model = dataclasses.replace(model, kernels=begun["kernels"])
    selector = kernels_to_skip if processes is None else kernels_to_skip_from_main_process
    encoder = Encoder.load(model, config.pooling, kernel_selector=selector)
    return encoder.to(best_device() if processes is None else processes.device).eval()


def _tokenizer_for(encoder: Encoder, role: str | None) -> TextTokenizer:
    if role is None:
        return encoder.tokenizer
    check_role(role, encoder.tokenizer.prompts)
    return encoder.tokenizer.named(role)


def _tokens(tokenizer: TextTokenizer, rows: Sequence[TextRow]) -> Tokens:
    return tokenizer([row.text for row in rows], [row.extras for row in rows] if tokenizer.columns else None)


def _wait(processes: PartialState | None) -> None:
    if processes is not None:
        processes.wait_for_everyone()


def _begin(inputs: Inputs, folder: EmbeddingFolder, matrix: PartialMatrix) -> None:
    """Make room for embeddings, or check that those in the folder are a part of the same.

    Raises:
        ConfigError, DataError: they are others.
        DiskError: there is too little space.

    """
    begun = folder.partial_record()
    if begun is not None:
        inputs.check_same(begun, folder.path)
    missing = matrix.nbytes if begun is None else int(matrix.nbytes * (1 - matrix.done().mean()))
    check_space(folder.path, missing + (matrix.nbytes if inputs.config.format == "parquet" else 0))
    if begun is None:
        folder.create(inputs.identity(), matrix)


def _encode(
    inputs: Inputs, matrix: PartialMatrix, missing: npt.NDArray[np.int64], processes: PartialState | None
) -> None:
    """Encode this process's share of the missing blocks."""
    rank, count = (0, 1) if processes is None else (processes.process_index, processes.num_processes)
    config, first_rows, own = inputs.config, inputs.survey.first_rows, missing[rank::count]
    clear_announcement()
    with (
        tqdm(
            total=int(np.diff(first_rows)[own].sum()),
            desc="texts",
            unit="text",
            disable=None if rank == 0 else True,
            leave=False,
        ) as bar,
        closing(_tokens_of_blocks(inputs, set(own.tolist()))) as blocks,
    ):
        for number, tokens in blocks:
            embeddings = inputs.encoder.encode_tokens(tokens, config.batch_size, bar.update)
            if config.normalize:
                embeddings = F.normalize(embeddings, dim=-1)
            matrix.write(number, _checked(embeddings.numpy(), config.dtype, int(first_rows[number])))


def _tokens_of_blocks(inputs: Inputs, own: set[int]) -> Generator[tuple[int, Tokens]]:
    for number, rows in inputs.texts.blocks(inputs.survey, own):
        try:
            tokens = _tokens(inputs.tokenizer, rows)
        except ConfigError:
            raise
        except ValueError as error:  # a text in a template with further columns
            first, end = inputs.survey.first_rows[number : number + 2]
            raise DataError(f"{ROWS}: rows {first + 1:,} to {end:,}: {str(error).removesuffix('.')}.") from None
        yield number, tokens


def _checked(embeddings: Array, dtype: str, first_row: int) -> Array:
    """Return embeddings (N, D) in the type that is written; the first is that of the row of this number, from 0.

    Raises:
        ConfigError: some are not finite, or not in that type.

    """
    with np.errstate(over="ignore"):
        written = embeddings.astype(dtype, copy=False)
    finite = np.isfinite(written).all(axis=1)
    if not finite.all():
        place = int(np.argmin(finite))
        if np.isfinite(embeddings[place]).all():
            raise ConfigError(
                f"The embedding of row {first_row + place + 1:,} has the value {np.abs(embeddings[place]).max():,.0f}, "
                f"more than dtype={dtype} can hold: type dtype=float32, or normalize=true."
            )
        raise ConfigError(
            f"The model's embedding of row {first_row + place + 1:,} is not finite: its weights are damaged, or too "
            f"large for their precision; give another model, or try model.dtype=float32."
        )
    return written


def _place(inputs: Inputs, matrix: PartialMatrix, target: Path) -> None:
    """Put all embeddings at their path."""
    if inputs.config.format == "npy":
        os.replace(matrix.path, target)
    else:
        blocks = inputs.texts.blocks(inputs.survey, range(len(inputs.survey.first_rows) - 1))
        replace_file(target, lambda path: write_table(path, blocks, matrix.read()))

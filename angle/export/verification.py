"""Compare what sentence-transformers makes of a written folder, in a new process, with the encoder's own embeddings."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from angle.data import sample
from angle.errors import ConfigError
from angle.evaluation.metrics import cosines, spearman
from angle.export.merging import LOW_PRECISION_TOLERANCE
from angle.modeling.encoder import Encoder
from angle.modeling.tokenizer import TextTokenizer

#: Largest distance of two embeddings of a text, if weights and states are float32.
TOLERANCE = 1e-5
#: Least rank correlation that rounding to 8 bits may leave: what a distance does to a ranking depends on the model.
LEAST_RANK_CORRELATION = 0.9
#: Words of the texts to compare on; one more has twice as many as the encoder reads tokens, so it is cut off.
NUM_WORDS = (1, 1, 2, 3, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
OTHER_TEXTS = (
    "SHOUTING costs 37 % more!",
    'Naïve "façades": (1) Größe, {2} coöperation; 3/4…',
    "x1-Yz_09",
    "It rained.",
    '"Why?"',
)
#: The methods of sentence-transformers that embed texts, and the role of the texts.
METHODS = {"encode": None, "encode_query": "query", "encode_document": "document"}


@dataclass(frozen=True)
class OnnxComparison:
    """How the embeddings by an ONNX file compare with the encoder's."""

    mean: float
    largest: float
    """The mean and the largest distance of two embeddings of a text."""
    rank_correlation: float
    """Spearman's, between the cosine similarities of any two texts by the file and by the encoder."""

    def __str__(self) -> str:
        """Return the result in human-readable form."""
        return (
            f"the cosine distance is {self.mean:.1e} on average and {self.largest:.1e} at most, the rank correlation "
            f"of similarities {100 * self.rank_correlation:.2f}"
        )


@dataclass(frozen=True)
class Verification:
    """The result of a comparison."""

    distance: float
    """The largest distance of two embeddings of a text."""
    num_texts: int
    versions: dict[str, str]
    """Versions of the packages that loaded the folder."""
    onnx: dict[str, OnnxComparison]
    """The results of its ONNX files, by their paths in the folder."""

    def __str__(self) -> str:
        """Return the result in human-readable form."""
        versions = " and ".join(f"{name.replace('_', '-')} {version}" for name, version in self.versions.items())
        return (
            f"the folder in a new process; the largest cosine distance on {self.num_texts} texts is "
            f"{self.distance:.1e} ({versions})"
        )


def can_verify() -> bool:
    """Return whether sentence-transformers is installed."""
    return importlib.util.find_spec("sentence_transformers") is not None


def texts_to_compare(max_length: int) -> list[str]:
    """Return texts that are short, long, and longer than the `max_length` tokens that an encoder reads."""
    words = " ".join(map(str, sample.columns("A", "test", 100)["text1"])).split()
    counts = (*NUM_WORDS, 2 * max_length)
    endless = cycle(words)
    return [*(" ".join(islice(endless, count)) for count in counts), *OTHER_TEXTS]


def texts_by_method(tokenizer: TextTokenizer) -> dict[str, list[str]]:
    """Return the texts to compare, by the method that embeds them: those of roles where the model has templates."""
    texts = texts_to_compare(tokenizer.max_length)
    has_templates = tokenizer.prompt is not None or tokenizer.prompts
    return {name: texts for name, role in METHODS.items() if role is None or has_templates}


def expected_embeddings(encoder: Encoder, texts: Mapping[str, list[str]]) -> Tensor:
    """Return the encoder's own embeddings (N, D) of the texts of all methods, one method after the other."""
    tokenizers = {name: encoder.tokenizer.named(role) if role else None for name, role in METHODS.items()}
    return torch.cat([encoder.encode(each, tokenizer=tokenizers[name]) for name, each in texts.items()])


def distances(actual: Tensor, expected: Tensor) -> Tensor:
    """Return the distances (N,) of embeddings (N, D): cosine distances, to which differences in length are added.

    They are half the squared relative differences: for embeddings of one length, that is the cosine distance, but
    without its rounding errors.
    """
    actual, expected = actual.double(), expected.double()
    errors: Tensor = (actual - expected).norm(dim=1) / expected.norm(dim=1)
    return errors.square() / 2


def verify(
    folder: Path,
    texts: Mapping[str, list[str]],
    expected: Tensor,
    dtype: torch.dtype,
    *flags: str,
    onnx: tuple[str, ...] = (),
) -> Verification:
    """Load a folder with sentence-transformers in a new process, and compare embeddings.

    Args:
        folder: what was written.
        texts: N texts, by the method that embeds them.
        expected: their embeddings (N, D) by the encoder.
        dtype: of the encoder's weights.
        flags: of `plain_encode`.
        onnx: the folder's ONNX files: that of float32, then quantised ones.

    Raises:
        ConfigError: it does not load, or embeddings differ.

    """
    with tempfile.TemporaryDirectory() as scratch:
        input_file, output_file = Path(scratch, "texts.json"), Path(scratch, "embeddings.npy")
        input_file.write_text(json.dumps(dict(texts)), encoding="utf-8")
        script = str(Path(__file__).with_name("plain_encode.py"))
        # -P: modules beside the script are not importable by their bare names, such as sentence_transformers.
        flags = (*flags, *(f"--onnx={path}" for path in onnx))
        words = [sys.executable, "-P", script, str(folder), str(input_file), str(output_file), *flags]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"])[-1]
            raise ConfigError(
                f"sentence-transformers does not load what was written ({reason[:300]}), so nothing is kept: use the "
                f"model as it is, with angle's Encoder."
            )
        actual, *by_onnx = torch.from_numpy(np.load(output_file)).view(1 + len(onnx), *expected.shape)
    tolerance = TOLERANCE if dtype == torch.float32 else LOW_PRECISION_TOLERANCE
    distance = float(distances(actual, expected).max())
    if not distance <= tolerance:
        raise ConfigError(
            f"sentence-transformers makes other embeddings of what was written, by {distance:.1e} in cosine where "
            f"{tolerance:.0e} is allowed, so nothing is kept: use the model as it is, with angle's Encoder."
        )
    compared = compare_onnx(dict(zip(onnx, by_onnx, strict=True)), expected, tolerance)
    return Verification(distance, len(expected), json.loads(done.stdout.splitlines()[-1]), compared)


def compare_onnx(by_file: Mapping[str, Tensor], expected: Tensor, tolerance: float) -> dict[str, OnnxComparison]:
    """Compare what ONNX files make of texts.

    Args:
        by_file: the embeddings (N, D) by each file: that of float32, then quantised ones.
        expected: those by the encoder.
        tolerance: the largest distance that the first file may cause; the others must leave the texts' order.

    Raises:
        ConfigError: they differ.

    """
    pairs, compared = torch.triu_indices(len(expected), len(expected), 1), dict[str, OnnxComparison]()
    for path, actual in by_file.items():
        found, similarities = distances(actual, expected), [cosines(*rows[pairs]) for rows in (actual, expected)]
        result = OnnxComparison(float(found.mean()), float(found.max()), spearman(*similarities))
        if not compared and not result.largest <= tolerance:
            raise ConfigError(
                f"{path} makes other embeddings than the model, by {result.largest:.1e} in cosine where "
                f"{tolerance:.0e} is allowed, so nothing is kept: leave onnx out."
            )
        if compared and not result.rank_correlation >= LEAST_RANK_CORRELATION:
            raise ConfigError(
                f"onnx=int8 changes this model's embeddings too much, by {result.mean:.1e} in cosine on average: the "
                f"rank correlation of similarities is {100 * result.rank_correlation:.2f} where "
                f"{100 * LEAST_RANK_CORRELATION:g} is the least, so nothing is kept; type onnx=float32."
            )
        compared[path] = result
    return compared

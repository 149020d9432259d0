"""Time the ONNX files of a converted folder against PyTorch: python -m benchmarks.onnx_speed FOLDER

sentence-transformers embeds the same texts by each in turn, several times. The least time counts, as other programs
only take time away: that on the clock, and that of the processors. The folder is one that convert.py wrote with
onnx=int8 or onnx=float32.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from angle.data import sample
from angle.export.plain_encode import run_by_onnx

NUM_TEXTS, BATCH_SIZE, ROUNDS = 200, 32, 8


def texts_of_one_to_four_sentences() -> list[str]:
    """Return `NUM_TEXTS` texts of the built-in sample."""
    sentences = [str(text) for text in sample.columns("A", "test")["text1"]]
    return [
        " ".join(sentences[(3 * number + other) % len(sentences)] for other in range(1 + number % 4))
        for number in range(NUM_TEXTS)
    ]


def main(folder: str) -> None:
    """Print the least time of each."""
    texts = texts_of_one_to_four_sentences()
    models = {"PyTorch": SentenceTransformer(folder, device="cpu")}
    for path in sorted(Path(folder, "onnx").glob("*.onnx")):
        models[path.name] = SentenceTransformer(folder, device="cpu")
        run_by_onnx(models[path.name], path)
    best = dict.fromkeys(models, (float("inf"), float("inf")))
    for _ in range(ROUNDS):
        for name, model in models.items():
            began = time.perf_counter(), time.process_time()
            model.encode(texts, batch_size=BATCH_SIZE, show_progress_bar=False)
            taken = time.perf_counter() - began[0], time.process_time() - began[1]
            best[name] = min(best[name][0], taken[0]), min(best[name][1], taken[1])
    tokens = sum(map(len, models["PyTorch"].tokenizer(texts)["input_ids"])) / NUM_TEXTS
    print(f"{NUM_TEXTS} texts of {tokens:.0f} tokens on average, {torch.get_num_threads()} threads")
    for name, (wall, processors) in best.items():
        print(f"{name:30} {wall:6.2f} s, {processors:.2f} s of processors")


if __name__ == "__main__":
    main(*sys.argv[1:])

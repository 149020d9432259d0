"""What an Espresso step costs over a plain one, and what its cells save: python -m benchmarks.espresso [...] [--cells]

A step is forward, loss, backward and AdamW over 64 pairs (or --rows) of random tokens, as long as short sentences.
Plain and Espresso steps alternate, and the medians are reported. A MODEL argument is a hub name, a folder, or
`bert-base`: its shape with random weights. --cells instead exports a model's first layers at several depths, and times
sentence-transformers encoding synthetic sentences with each in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from angle import ConvertConfig, Encoder, ModelConfig, PoolingConfig, convert
from angle.config import BillmConfig, EseConfig, LoraConfig, LossConfig
from angle.data import sample
from angle.modeling.tiny import tiny_tokenizer
from angle.objective.combined import CombinedLoss
from angle.objective.espresso import EspressoLoss
from angle.structures import FORMATS, BatchStructure

BERT_BASE = "bert-base"


def load(name: str) -> Encoder:
    """Return an encoder to train; a decoder gets adapters and bidirectional attention in its upper half."""
    if name == BERT_BASE:
        from transformers import BertConfig, BertModel

        with tempfile.TemporaryDirectory() as folder:
            BertModel(BertConfig()).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
            return Encoder.load(ModelConfig(folder), PoolingConfig("avg")).train()
    encoder = Encoder.load(ModelConfig(name), PoolingConfig("avg"))
    if not encoder.is_llm:
        return encoder.train()
    half = BillmConfig(enabled=True, start_index=encoder.layer_selector.num_layers // 2)
    return Encoder.load(ModelConfig(name), PoolingConfig("avg"), LoraConfig(enabled=True, r=16, alpha=32), half).train()


def alternate(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each call, alternating between the calls, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def measure(name: str, rows: int, repeats: int) -> str:
    """Return a model's line of the table."""
    encoder = load(name).to("cuda" if torch.cuda.is_available() else "cpu")
    random = np.random.default_rng(0)
    lengths = random.integers(6, 32, 2 * rows)
    ids = torch.from_numpy(random.integers(5, encoder.backbone.config.vocab_size, lengths.sum())).to(encoder.device)
    index = torch.arange(2 * rows, device=encoder.device).view(-1, 2)
    labels = torch.arange(rows, device=encoder.device) % 6 / 1.0
    structure = BatchStructure(FORMATS["A"], index, index, labels)
    plain = CombinedLoss(LossConfig(positive_above=4.0), FORMATS["A"], encoder.dimensions)
    espresso = EspressoLoss(plain, EseConfig(enabled=True), encoder.layer_selector.num_layers, encoder.dimensions)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def step(loss: CombinedLoss | EspressoLoss, depths: tuple[int, ...] | None) -> None:
        loss(encoder(ids, lengths, depths), structure).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        embeddings: Tensor = encoder(ids, lengths, espresso.depths)

    def forward_and_backward() -> None:
        encoder(ids, lengths, espresso.depths).square().mean().backward()

    def loss_alone() -> None:
        espresso(embeddings.clone().requires_grad_(), structure).total.backward()

    seconds = alternate(
        {
            "plain": lambda: step(plain, None),
            "espresso": lambda: step(espresso, espresso.depths),
            "encoder": forward_and_backward,
            "loss": loss_alone,
        },
        repeats,
    )
    encoder.zero_grad()
    return (
        f"| {Path(name).name} | {encoder.layer_selector.num_layers} x {encoder.dimensions} | {rows} "
        f"| {seconds['plain']:.2f} s | "
        f"{seconds['espresso']:.2f} s | {seconds['espresso'] / seconds['plain']:.2f} | {seconds['loss']:.2f} s | "
        f"{seconds['loss'] / seconds['encoder']:.2f} |"
    )


def measure_cells(name: str, repeats: int) -> list[str]:
    """Return a line of the table for each of several depths of a model, run by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    layers = Encoder.load(name).depths.layers
    depths = sorted({layers, layers * 2 // 3, layers // 2, layers // 3, 1}, reverse=True)
    columns = sample.columns("A", "train", 1000)
    texts = [str(text) for role in ("text1", "text2") for text in columns[role]]
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], object]] = {}
        for depth in depths:
            cell = ModelConfig(name, layers=depth, dimensions=128)
            done = convert(ConvertConfig(cell, PoolingConfig("avg"), output_dir=f"{folder}/{depth}"))
            calls[str(depth)] = partial(SentenceTransformer(str(done.folder)).encode, texts, batch_size=64)
        seconds = alternate(calls, repeats)
    whole = seconds[str(layers)]
    return [
        f"| {Path(name).name} | {depth} of {layers} | {len(texts) / seconds[str(depth)]:,.0f} | "
        f"{whole / seconds[str(depth)]:.2f} |"
        for depth in depths
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[BERT_BASE])
    parser.add_argument("--cells", action="store_true")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    transformers.logging.disable_progress_bar()
    heads: tuple[str, ...] = ("model", "layers", "texts/s", "as fast as all")
    if not options.cells:
        heads = (
            "model",
            "layers x width",
            "rows",
            "plain step",
            "Espresso's",
            "ratio",
            "its loss alone",
            "of encoder's",
        )
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in options.models:
        lines = (
            measure_cells(name, options.repeats) if options.cells else [measure(name, options.rows, options.repeats)]
        )
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()

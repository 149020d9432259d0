"""Memory of a LoRA step, predicted and measured: python -m benchmarks.memory [135M 0.6B 7B 13B]

Weights are random, in the shapes of models of that size. The prediction runs the model with its adapters on torch's
"meta" device, which has shapes but no memory; the size of 4-bit weights is calculated, and their activations are
assumed to be those of bfloat16. The measurement is `train.dry_run=true`, skipped if this machine has too little memory.
Both use one batch of texts of equal length.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedTokenizerFast

from angle import TrainConfig, build_config
from angle.kernels.lora import install_lora
from angle.modeling.backbone import checkpoint_activations
from angle.training.dry_run import dry_run
from angle.training.memory import Allocations

GIB = 2**30
PARTS = ("frozen weights", "trained weights", "gradients", "optimiser state", "activations")
#: Bytes per NF4 weight with double quantisation: 4 bits, an 8-bit scale per 64 weights and a 32-bit one per 16,384.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
#: Number of words that the random models' tokenizer knows.
WORDS = 30_000


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder."""

    name: str
    kind: str
    settings: dict[str, int]

    def config(self) -> PretrainedConfig:
        """Return the model configuration."""
        return AutoConfig.for_model(self.kind, bos_token_id=1, eos_token_id=1, pad_token_id=0, **self.settings)


def _shape(name: str, kind: str, hidden: int, inner: int, layers: int, heads: int, groups: int, words: int) -> Shape:
    head = {"head_dim": 128} if kind == "qwen3" else {}
    return Shape(
        name,
        kind,
        {
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "vocab_size": words,
            **head,
        },
    )


SHAPES = {
    shape.name: shape
    for shape in (
        _shape("135M", "llama", 576, 1536, 30, 9, 3, 49_152),
        _shape("0.6B", "qwen3", 1024, 3072, 28, 16, 8, 151_936),
        _shape("7B", "llama", 4096, 11_008, 32, 32, 32, 32_000),
        _shape("13B", "llama", 5120, 13_824, 40, 40, 40, 32_000),
    )
}


def predict(shape: Shape, bits: int | None, rank: int, texts: int, length: int) -> dict[str, float]:
    """Return the bytes of each part, for bfloat16 or 4-bit weights."""
    with torch.device("meta"):
        model = AutoModel.from_config(shape.config(), dtype=torch.bfloat16)
        checkpoint_activations(model)
        linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
        total = sum(parameter.numel() for parameter in model.parameters())
        # As `add_adapters` does, which runs a text to find the layers: that cannot be done here.
        adapted = get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.1, target_modules="all-linear")
        ).train()
        install_lora(adapted)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        size = sum(parameter.nbytes for parameter in trained)
        adapted.to(torch.bfloat16)  # which autocast, unknown on this device, would compute in
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        with Allocations() as made:
            ids = torch.zeros(texts, length, dtype=torch.int64)
            seen = torch.ones(texts, 1, length, length, dtype=torch.bool)  # given, because none can be derived here
            states = adapted(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
            states.float().mean(1).sum().backward()
    frozen = 2 * total if bits is None else 2 * (total - linear) + NF4 * linear
    return dict(zip(PARTS, (frozen, size, size, 2 * size, made.peak), strict=True))


def save_random_weights(kind: Any, config: PretrainedConfig, folder: Path) -> None:
    """Write a model of one of transformers' auto classes, with random bfloat16 weights, into a folder."""
    # On a GPU, since billions of random numbers take minutes on a CPU.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        kind.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def random_model(shape: Shape, folder: Path) -> None:
    """Write a model with random weights, and a tokenizer that knows words w2, w3, ..., into a folder."""
    save_random_weights(AutoModel, shape.config(), folder)
    words = {"[PAD]": 0, "[END]": 1, **{f"w{number}": number for number in range(2, WORDS)}}
    backend = Tokenizer(models.WordLevel(words, "[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", eos_token="[END]")
    tokenizer.save_pretrained(folder)


def measure(model: Path, bits: int | None, rank: int, rows: int, length: int) -> dict[str, float]:
    """Return the bytes of each part in a real step of a `random_model`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rng = np.random.default_rng(0)
        texts = [" ".join(f"w{number}" for number in rng.integers(2, WORDS, length)) for _ in range(2 * rows)]
        lines = (json.dumps({"text": a, "positive": b}) for a, b in zip(texts[::2], texts[1::2], strict=True))
        (folder / "rows.jsonl").write_text("\n".join(lines))
        config = build_config(
            {
                "model": {
                    "name_or_path": str(model),
                    "dtype": "bfloat16",
                    "load_kbit": bits,
                    "gradient_checkpointing": True,
                },
                "lora": {"enabled": True, "r": rank, "alpha": 2 * rank},
                "data": {"train": {"name_or_path": str(folder / "rows.jsonl")}},
                "train": {"batch_size": rows, "mixed_precision": "bf16", "dry_run": True},
            },
            TrainConfig,
        )
        return dict(dry_run(config).memory)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Memory of a LoRA step, predicted and measured.")
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="rows of two texts")
    parser.add_argument("--length", type=int, default=64, help="tokens of every text")
    arguments = parser.parse_args()
    print(
        f"LoRA r{arguments.rank}, checkpointing, {arguments.rows} rows of two texts of {arguments.length} tokens, GiB"
    )
    print(f"\n| model | weights | | {' | '.join(PARTS)} | together |\n|{'---|' * (len(PARTS) + 4)}")
    for name in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            for bits in (None, 4):
                weights = "bfloat16" if bits is None else "NF4"
                found = predict(SHAPES[name], bits, arguments.rank, 2 * arguments.rows, arguments.length)
                _print(name, weights, "predicted", found)
                # Random weights are created in bfloat16, whatever type they are loaded in.
                whole = predict(SHAPES[name], None, arguments.rank, 2, 2)["frozen weights"]
                if _free() > 1.1 * max(whole, sum(found.values())):
                    if not any(Path(folder).iterdir()):
                        random_model(SHAPES[name], Path(folder))
                    real = measure(Path(folder), bits, arguments.rank, arguments.rows, arguments.length)
                    _print(name, weights, "measured", real)


def _free() -> int:
    """Return the free bytes of the GPU if there is one, otherwise of this machine."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def _print(name: str, weights: str, how: str, parts: dict[str, float]) -> None:
    cells = " | ".join(f"{size / GIB:.2f}" for size in (*parts.values(), sum(parts.values())))
    print(f"| {name} | {weights} | {how} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

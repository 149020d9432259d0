"""What a GPU computes is what a CPU computes: `pytest -m gpu` where there is one, otherwise the CPU against itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_jsonl
from packed_models import TEXTS, embed, load, model_and_start_cases
from torch import Tensor

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.evaluation.search import search
from angle.kernels.attention.spec import AttentionSpec
from angle.kernels.attention.varlen import (
    HALF_DTYPES,
    PackedTexts,
    attend_texts,
    available_backends,
    call_backend,
    flash_with_dropout,
)
from angle.tracking.tracker import Tracker
from angle.training.loop import fit

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
LENGTHS = np.array([90, 47, 46, 46, 20, 13, 7, 7, 3, 1])


def reference_attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """Return (T, H, d): attention text by text, in float64."""
    outputs = []
    for text_qkv in zip(*(torch.split(tensor.double(), LENGTHS.tolist()) for tensor in (q, k, v)), strict=True):
        text_q, text_k, text_v = (part.transpose(0, 1) for part in text_qkv)
        text_k, text_v = (part.repeat_interleave(len(text_q) // len(part), dim=0) for part in (text_k, text_v))
        scores = (text_q @ text_k.transpose(1, 2)) * text_q.shape[-1] ** -0.5
        masked = ~spec.attention_mask(text_q.shape[1], text_q.device)
        outputs.append((scores.masked_fill(masked, float("-inf")).softmax(-1) @ text_v).transpose(0, 1))
    return torch.cat(outputs)


def random_qkv(heads: Sequence[int], head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    total = int(LENGTHS.sum())
    return [torch.randn(total, count, head_dim, device=DEVICE).to(dtype).requires_grad_() for count in heads]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128, 256])
@pytest.mark.parametrize("heads", [(4, 4, 4), (8, 2, 2)], ids=str)
def test_attention_and_its_gradient(dtype: torch.dtype, head_dim: int, heads: tuple[int, ...]) -> None:
    """By whatever kernel is chosen here, with the same numbers as in float64."""
    texts = PackedTexts(LENGTHS, DEVICE)
    for causal, window in product((False, True), (None, 16)):
        spec, inputs = AttentionSpec(causal, window), random_qkv(heads, head_dim, dtype)
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        expected = reference_attention(*exact, spec)
        actual = attend_texts(*(tensor.transpose(0, 1)[None] for tensor in inputs), texts, spec)[0]
        direction = torch.randn_like(expected)
        gradients = (
            torch.autograd.grad((out.double() * direction).sum(), tensors)
            for out, tensors in ((actual, inputs), (expected, exact))
        )
        errors = [relative_error(actual, expected), *map(relative_error, *gradients)]
        assert max(errors) < (1e-5 if dtype == torch.float32 else 1e-2)


@ON_GPU
@pytest.mark.parametrize("backend", sorted(available_backends()))
def test_dropout_in_attention(backend: str) -> None:
    """The right fraction is dropped, the mean stays, and the gradient is that of the draw."""
    texts, spec = PackedTexts(LENGTHS, DEVICE), AttentionSpec(causal=False, dropout=0.2)
    q, k, v = random_qkv((4, 4, 4), 128, torch.bfloat16)
    out = call_backend(backend, q, k, v, texts, spec)
    direction = torch.randn_like(out)
    (value_grad,) = torch.autograd.grad((out * direction).sum(), v)
    # Attention is linear in the values.
    assert (value_grad.double() * v).sum().item() == pytest.approx((out.double() * direction).sum().item(), rel=1e-2)
    with torch.no_grad():
        mean = torch.stack([call_backend(backend, q, k, v, texts, spec).double() for _ in range(400)]).mean(0)
        one_hot = torch.zeros_like(v)
        first = torch.arange(LENGTHS[0], device=DEVICE)
        one_hot[first, :, first] = 1  # so that the outputs of the first text are its attention weights
        weights = call_backend(backend, q, k, one_hot, texts, spec)[: LENGTHS[0], :, : LENGTHS[0]]
    assert relative_error(mean, reference_attention(q, k, v, AttentionSpec(causal=False))) < 0.05
    assert (weights == 0).double().mean().item() == pytest.approx(spec.dropout, abs=0.01)


@ON_GPU
def test_dropout_is_determined_by_the_seed() -> None:
    texts, spec, inputs = (
        PackedTexts(LENGTHS, DEVICE),
        AttentionSpec(causal=False, dropout=0.1),
        random_qkv((4, 4, 4), 64, HALF_DTYPES[1]),
    )
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(flash_with_dropout(*inputs, texts, spec))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(("name", "start"), model_and_start_cases())
def test_packed_embeddings_match_those_of_the_cpu(
    folder_of: Callable[[str], str], name: str, start: int | None
) -> None:
    encoder = load(folder_of(name), start=start).eval()
    expected = embed(encoder)
    encoder.to(DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        encoder.verify_packing(training=True)
        assert encoder.is_packed
        tokens = encoder.tokenizer(TEXTS)
        actual = encoder(torch.from_numpy(tokens.ids.astype(np.int64)).to(DEVICE), tokens.lengths)
    assert torch.nn.functional.cosine_similarity(actual.cpu(), expected).min() > 0.99


def losses(folder: Path, model: str = "tiny", **train: Any) -> list[float]:
    """Train for a few steps, and return the losses."""
    rows = [
        {"text": f"owl {n % 7} in", "positive": f"fox {n}", "negative": "red moon " * (n % 5 + 1)} for n in range(64)
    ]
    folder.mkdir(exist_ok=True)
    settings = {
        "model": {"name_or_path": model},
        "data": {"train": {"name_or_path": str(write_jsonl(folder / "rows.jsonl", rows))}},
        "train": {
            "output_dir": str(folder / "run"),
            "batch_size": 16,
            "max_steps": 4,
            "logging_steps": 1,
            "dropout": "own",
            **train,
        },
    }
    run = fit(build_config(settings, TrainConfig)).folder
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_can_be_repeated_bit_for_bit(folder_of: Callable[[str], str], tmp_path: Path, precision: str) -> None:
    """With dropout, in attention too."""
    first, second, other = (
        losses(tmp_path / str(number), folder_of("bert"), mixed_precision=precision, seed=seed)
        for number, seed in enumerate((1, 1, 2))
    )
    assert len(first) == 4
    assert first == second != other


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_killed_run_resumes_bit_for_bit(
    folder_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    def killed(_: Tracker) -> None:
        if list((tmp_path / "killed" / "run" / "checkpoints").glob("*")):
            raise KeyboardInterrupt

    train = {"mixed_precision": precision, "save_steps": 2}
    uninterrupted = losses(tmp_path / "uninterrupted", folder_of("bert"), **train)
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            losses(tmp_path / "killed", folder_of("bert"), **train)
    assert losses(tmp_path / "killed", folder_of("bert"), **train) == uninterrupted
    weights = [(tmp_path / name / "run/final/model.safetensors").read_bytes() for name in ("uninterrupted", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_norms_keep_their_dtype_under_autocast(folder_of: Callable[[str], str], name: str) -> None:
    norm = load(folder_of(name), dtype="bfloat16").backbone.norm.to(DEVICE)
    values = torch.randn(5, 32, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        actual = norm(values)
    (gradient,) = torch.autograd.grad(actual.sum(), values)
    assert actual.dtype == gradient.dtype == torch.bfloat16
    norm.float()  # not before the backward pass, for which a GPU's kernel keeps these weights
    assert relative_error(actual, norm(values.float())) < 1e-2


def test_micro_batches_and_padding_give_the_same_losses(tmp_path: Path) -> None:
    unsplit = losses(tmp_path / "unsplit")
    assert losses(tmp_path / "parts", token_budget=64) == pytest.approx(unsplit, rel=1e-4)
    assert losses(tmp_path / "padded", packing="off") == pytest.approx(unsplit, rel=1e-4)


def test_search_finds_the_same_passages() -> None:
    """Whole numbers have cosines without rounding, and many of them are equal."""
    axes = torch.eye(8)[torch.from_numpy(np.random.default_rng(0).integers(0, 8, 5000))]
    queries = torch.eye(8) + torch.eye(8).roll(1, 0)
    on_cpu, found = (search(queries, axes.split(999), 700, device) for device in ("cpu", DEVICE))  # type: ignore[no-untyped-call]
    assert torch.equal(found.passages, on_cpu.passages)
    assert torch.allclose(found.cosines, on_cpu.cosines, atol=1e-6)

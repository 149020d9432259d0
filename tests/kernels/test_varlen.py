"""Packed rows as a GPU runs them: one attention call for all texts, by a kernel or on a padded batch.

No kernel for texts of various lengths runs on a CPU. Where a test is about everything around it, a function in plain
torch replaces it, with its signature and its requirements. The padded batch runs as it is.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from conftest import MODELS, write_jsonl
from packed_models import (
    DECODERS,
    TEXTS,
    assert_close_to_scale,
    check_adapters,
    check_against_padded,
    check_checkpointing,
    embed,
    gradients,
    load,
    model_and_start_cases,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.kernels.attention import packed, varlen
from angle.kernels.attention.spec import AttentionSpec
from angle.kernels.attention.varlen import FLASH, PADDED, VARLEN, PackedTexts, choose_backend
from angle.modeling import packing, trials
from angle.modeling.encoder import Encoder
from angle.tracking.tracker import Tracker
from angle.training import loop, setup
from angle.training.accelerator import start_accelerator
from angle.training.describe import banner
from angle.training.loop import fit

INSTALLED = torch.nn.attention.varlen.varlen_attn
BOTH = frozenset({VARLEN, FLASH})
#: Operators that make the host wait for a GPU.
BLOCKING_OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


def reference_varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, window: tuple[int, int], scale: float | None
) -> Tensor:
    """Attend text by text, with at most `window` tokens before and after each."""
    outputs = []
    for start, end in zip(cu_seqlens.tolist()[:-1], cu_seqlens.tolist()[1:], strict=True):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        k, v = (tensor.repeat_interleave(len(q) // len(tensor), dim=0) for tensor in (k, v))
        positions = torch.arange(end - start)
        distance = positions[None] - positions[:, None]
        visible = ((distance <= window[1]) | (window[1] < 0)) & ((-distance <= window[0]) | (window[0] < 0))
        scores = q @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        outputs.append((scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def check_kernel_inputs(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: tuple[Tensor, Tensor], longest: tuple[int, int]
) -> None:
    """Check what both kernels require, apart from the dtype."""
    assert query.dtype == key.dtype == value.dtype
    assert query.shape[0] == key.shape[0] == value.shape[0]
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    for each, length in zip(cu_seqlens, longest, strict=True):
        assert each.dtype == torch.int32
        assert each.is_contiguous()
        assert type(length) is int
        assert int(each.diff().max()) == length
        assert int(each[-1]) == len(query)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    check_kernel_inputs(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k))
    assert query.shape[1] == key.shape[1] or enable_gqa
    return reference_varlen_attention(query, key, value, cu_seq_q, window_size, scale)


def varlen_attn_of_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    assert query.shape[1] == key.shape[1]
    return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    check_kernel_inputs(q, k, v, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k))
    out = reference_varlen_attention(
        q, k, v, cu_seqlens_q, (window_size[0], 0 if causal else window_size[1]), softmax_scale
    )
    return torch.nn.functional.dropout(out, dropout_p)


def flash_with_dropout(q: Tensor, k: Tensor, v: Tensor, texts: PackedTexts, spec: AttentionSpec) -> Tensor:
    check_kernel_inputs(q, k, v, (texts.cu_seqlens, texts.cu_seqlens), (texts.max_seqlen, texts.max_seqlen))
    return torch.nn.functional.dropout(
        reference_varlen_attention(q, k, v, texts.cu_seqlens, spec.window_size, spec.scaling), spec.dropout
    )


@pytest.fixture
def force_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes packed rows run as on a GPU, attention by VARLEN, FLASH or PADDED."""
    package = ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)  # transformers looks for it
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]

    def force(backend: str, kernel: Callable[..., Tensor] = varlen_attn) -> None:
        for module in (packing, packed):
            monkeypatch.setattr(module, "ATTENDS_BY_LENGTH_GROUP", ())
        monkeypatch.setattr(varlen, "choose_backend", lambda *_: backend)
        monkeypatch.setattr(varlen, "available_backends", lambda: BOTH)  # the real one remembers what it found
        monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
        monkeypatch.setattr(varlen, "flash_with_dropout", flash_with_dropout)
        if backend == FLASH:
            monkeypatch.setitem(sys.modules, "flash_attn", package)

    return force


def test_the_replacement_has_the_signature_of_torchs_kernel() -> None:
    real = inspect.signature(INSTALLED).parameters
    for name, ours in inspect.signature(varlen_attn).parameters.items():
        if name != "enable_gqa" or name in real:  # torch 2.11 has none
            assert (real[name].kind, real[name].default) == (ours.kind, ours.default)


@pytest.mark.parametrize(
    ("changed", "backend"),
    [
        ({}, VARLEN),
        ({"dtype": torch.float16}, VARLEN),
        ({"dtype": torch.float32}, PADDED),
        ({"dtype": torch.float64}, PADDED),
        ({"device": "cpu"}, PADDED),
        ({"device": "mps"}, PADDED),
        ({"capability": (7, 5)}, PADDED),
        ({"capability": (9, 0)}, VARLEN),
        ({"capability": (12, 0)}, VARLEN),
        ({"head_dim": 8}, VARLEN),
        ({"head_dim": 60}, PADDED),
        ({"head_dim": 192}, VARLEN),
        ({"head_dim": 200}, PADDED),
        ({"head_dim": 224}, PADDED),
        ({"head_dim": 256}, VARLEN),
        ({"head_dim": 256, "dropout": 0.1}, PADDED),
        ({"head_dim": 264}, PADDED),
        ({"dropout": 0.1}, FLASH),
        ({"dropout": 0.1, "dtype": torch.float32}, PADDED),
        ({"dropout": 0.1, "capability": (7, 5)}, PADDED),
        ({"dropout": 0.1, "available": frozenset({VARLEN})}, VARLEN),
        ({"dropout": 0.1, "available": frozenset({VARLEN}), "head_dim": 256}, PADDED),
        ({"available": frozenset({VARLEN})}, VARLEN),
        ({"available": frozenset({FLASH})}, FLASH),
        ({"available": frozenset()}, PADDED),
    ],
    ids=str,
)
def test_backend_selection(changed: dict[str, Any], backend: str) -> None:
    usual = {"device": "cuda", "dtype": torch.bfloat16, "dropout": 0.0, "head_dim": 64, "capability": (8, 0)}
    assert choose_backend(**({**usual, "available": BOTH} | changed)) == backend


def test_a_cpu_has_no_capability() -> None:
    assert varlen.compute_capability(torch.device("cpu")) == (0, 0)


def test_indices_offsets_and_masks() -> None:
    texts = PackedTexts(np.array([3, 1]), torch.device("cpu"))
    assert texts.cu_seqlens.tolist() == [0, 3, 4]
    assert texts.padded_indices.tolist() == [0, 1, 2, 3]
    assert PackedTexts(np.array([1, 3]), torch.device("cpu")).padded_indices.tolist() == [0, 3, 4, 5]
    full = texts.mask(AttentionSpec(causal=False))
    assert full is not None
    assert full.tolist() == [[[[True, True, True]]], [[[True, False, False]]]]
    assert texts.mask(AttentionSpec(causal=True)) is None
    assert PackedTexts(np.array([2, 2]), torch.device("cpu")).mask(AttentionSpec(causal=False)) is None
    windowed = texts.mask(AttentionSpec(causal=False, window=2))
    assert windowed is not None
    assert windowed.int().tolist() == [[[[1, 1, 0], [1, 1, 1], [0, 1, 1]]], [[[1, 0, 0], [0, 1, 1], [0, 1, 1]]]]
    causal_windowed = texts.mask(AttentionSpec(causal=True, window=2))
    assert causal_windowed is not None
    assert causal_windowed.int().tolist() == [[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]
    assert texts.mask(AttentionSpec(causal=True, window=2)) is causal_windowed  # made once
    assert texts.cu_seqlens is texts.cu_seqlens


BACKENDS = [(PADDED, *case) for case in model_and_start_cases()] + [(VARLEN, *case) for case in model_and_start_cases()]
BACKENDS += [(FLASH, name, None) for name in ("bert", "modernbert", "phi3")]


@pytest.mark.parametrize(("backend", "name", "start"), BACKENDS)
def test_embeddings_and_gradients_match_padded_ones(
    folder_of: Callable[[str], str], force_backend: Callable[[str], None], backend: str, name: str, start: int | None
) -> None:
    force_backend(backend)
    check_against_padded(folder_of(name), start)


def test_padded_attention_does_not_use_cudnn(
    folder_of: Callable[[str], str], force_backend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, seen = varlen.scaled_dot_product_attention, []

    def record(*inputs: Any, **options: Any) -> Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*inputs, **options)

    force_backend(PADDED)
    encoder = load(folder_of("bert"))
    monkeypatch.setattr(varlen, "scaled_dot_product_attention", record)
    embed(encoder)
    assert set(seen) == {False}


@pytest.mark.parametrize("name", DECODERS)
def test_key_heads_are_repeated_for_a_kernel_without_grouped_heads(
    folder_of: Callable[[str], str], force_backend: Callable[..., None], name: str
) -> None:
    force_backend(VARLEN, varlen_attn_of_2_11)
    packed, padded = (load(folder_of(name), packed=is_packed).eval() for is_packed in (True, False))
    assert packed.is_packed
    assert_close_to_scale(embed(packed), embed(padded))


@pytest.mark.parametrize("backend", [PADDED, VARLEN])
@pytest.mark.parametrize("name", ["bert", "llama", "phi3"])
def test_checkpointing_sees_the_same_texts(
    folder_of: Callable[[str], str], force_backend: Callable[[str], None], backend: str, name: str
) -> None:
    force_backend(backend)
    check_checkpointing(folder_of(name))


@pytest.mark.parametrize("backend", [PADDED, VARLEN])
@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_adapters_match_padded_ones(
    folder_of: Callable[[str], str], force_backend: Callable[[str], None], backend: str, name: str
) -> None:
    force_backend(backend)
    check_adapters(folder_of(name))


@pytest.mark.parametrize("backend", [PADDED, VARLEN])
@pytest.mark.parametrize("name", MODELS)
def test_autocast(
    folder_of: Callable[[str], str], force_backend: Callable[[str], None], backend: str, name: str
) -> None:
    force_backend(backend)
    encoder = load(folder_of(name)).eval()
    expected = embed(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert trials.packing_is_exact(encoder.backbone, training=True)
        actual = embed(encoder)
    assert torch.nn.functional.cosine_similarity(actual, expected).min() > 0.99
    actual.sum().backward()
    assert len(gradients(encoder)) == sum(parameter.requires_grad for parameter in encoder.parameters())


class FlashArgumentRecorder(TorchDispatchMode):
    """Records the arguments of flash attention's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, dict[str, Any]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        if "flash_attention" in name:
            names = [argument.name for argument in operator._schema.arguments]
            self.inputs[name] = dict(zip(names, args, strict=False)) | (kwargs or {})
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("spec", "causal", "window_size"),
    [
        (AttentionSpec(causal=False, dropout=0.1), False, (-1, -1)),
        (AttentionSpec(causal=True, dropout=0.2, scaling=0.5), True, (-1, 0)),
        (AttentionSpec(causal=False, window=3, dropout=0.1), False, (2, 2)),
        (AttentionSpec(causal=True, window=3, dropout=0.1), False, (2, 0)),
    ],
)
def test_dropout_is_passed_to_torchs_operator(spec: AttentionSpec, causal: bool, window_size: tuple[int, int]) -> None:
    """On tensors without contents: torch checks the arguments and knows the gradient, but computes nothing."""
    texts = PackedTexts(np.array([4, 2]), torch.device("meta"))
    q = torch.empty(6, 4, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    k, v = (torch.empty(6, 2, 8, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(2))
    with FlashArgumentRecorder() as recorder:
        out = varlen.call_backend(VARLEN, q, k, v, texts, spec)
        out.sum().backward()
    assert out.shape == q.shape
    assert [tensor.grad.shape for tensor in (q, k, v)] == [q.shape, k.shape, v.shape]
    assert recorder.inputs.keys() == {"_flash_attention_forward", "_flash_attention_backward"}
    for inputs in recorder.inputs.values():
        assert (inputs["dropout_p"], inputs["is_causal"], inputs.get("scale")) == (spec.dropout, causal, spec.scaling)
        assert (inputs["window_size_left"], inputs["window_size_right"]) == window_size
        assert (inputs["max_q"], inputs["max_k"]) == (4, 4)
        assert inputs["cum_seq_q"].dtype == torch.int32


@pytest.mark.parametrize("autocast", [True, False])
def test_attention_uses_the_dtype_of_autocast(
    force_backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch, autocast: bool
) -> None:
    """Layers of few bits give float32 even under autocast."""
    seen = []
    force_backend(VARLEN)
    monkeypatch.setattr(varlen, "choose_backend", lambda _, dtype, *__: seen.append(dtype) or VARLEN)
    q, k, v = torch.randn(3, 1, 4, 6, 8)
    texts = PackedTexts(np.array([4, 2]), torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = varlen.attend_texts(q, k, v, texts, AttentionSpec(causal=True))
    assert seen == [out.dtype] == [torch.bfloat16 if autocast else torch.float32]


class BlockingOperatorRecorder(TorchDispatchMode):
    """Records the operators for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking_operators: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in BLOCKING_OPERATORS or by_mask:
            self.blocking_operators.append(name)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "start"), model_and_start_cases())
def test_no_device_synchronization(
    folder_of: Callable[[str], str], force_backend: Callable[[str], None], name: str, start: int | None
) -> None:
    force_backend(PADDED)
    encoder = load(folder_of(name), start=start).train()
    with BlockingOperatorRecorder() as spy:
        embed(encoder).sin().sum().backward()
        assert not spy.blocking_operators
        torch.ones(1).item()
        assert spy.blocking_operators == ["_local_scalar_dense"]


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"train": {"token_budget": 40, "gradient_accumulation_steps": 2, "mixed_precision": "bf16"}},
        {"ese": {"enabled": True, "compression_size": 16}, "teacher": {"enabled": True, "name_or_path": "self"}},
        {"lora": {"enabled": True, "r": 2}, "loss": {"cosine_w": 1.0}},
    ],
    ids=["plain", "micro-batches", "espresso and teacher", "adapters"],
)
def test_steps_synchronize_with_the_device_only_for_logging(
    folder_of: Callable[[str], str],
    force_backend: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    rows: Path,
    tmp_path: Path,
    groups: dict[str, Any],
) -> None:
    force_backend(PADDED)
    spy, seen, train, advance = BlockingOperatorRecorder(), list[list[str]](), loop._train, Tracker.advance

    def train_with_spy(*inputs: Any) -> None:
        with spy:
            train(*inputs)

    def advance_and_look(tracker: Tracker) -> None:
        seen.append(list(spy.blocking_operators))
        advance(tracker)

    monkeypatch.setattr(loop, "_train", train_with_spy)
    monkeypatch.setattr(Tracker, "advance", advance_and_look)
    to_list = torch.Tensor.tolist

    def to_list_with_spy(tensor: torch.Tensor) -> Any:
        spy.blocking_operators.append("tolist")
        return to_list(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", to_list_with_spy)
    usual = {"max_steps": 4, "logging_steps": 3, "save_steps": 0, "batch_size": 8, "output_dir": str(tmp_path / "run")}
    settings = {"model": {"name_or_path": folder_of("bert")}, "data": {"train": {"name_or_path": str(rows)}}}
    loop.fit(build_config({**settings, **groups, "train": usual | groups.get("train", {})}, TrainConfig))
    assert seen[:3] == [[], [], []]
    assert seen[3]  # what the third step was logged with


@pytest.mark.parametrize("backend", [PADDED, FLASH])
def test_attention_dropout_drops(
    folder_of: Callable[[str], str], force_backend: Callable[[str], None], backend: str
) -> None:
    force_backend(backend)
    encoder = load(folder_of("bert")).train()
    assert torch.equal(embed(encoder), embed(encoder))
    for layer in encoder.backbone.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    assert not torch.equal(embed(encoder), embed(encoder))


class Untrainable(torch.autograd.Function):
    """The identity, without a backward pass."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("not on this card")


def test_packing_is_verified_on_the_current_device(
    folder_of: Callable[[str], str], force_backend: Callable[..., None]
) -> None:
    force_backend(VARLEN)
    encoder = load(folder_of("bert")).train()
    encoder.backbone.embeddings.dropout.p = 0.1
    state = torch.get_rng_state()
    assert trials.packing_is_exact(encoder.backbone, training=True)
    assert encoder.backbone.training
    encoder.eval()
    assert trials.packing_is_exact(encoder.backbone, training=True)
    assert not encoder.backbone.training
    assert not gradients(encoder)
    assert torch.equal(torch.get_rng_state(), state)

    def attend_across_texts(*args: Any, window_size: Any, **kwargs: Any) -> Tensor:
        everything = torch.tensor([0, len(args[0])], dtype=torch.int32)
        return reference_varlen_attention(*args[:3], everything, window_size, kwargs["scale"])

    force_backend(VARLEN, attend_across_texts)
    assert not trials.packing_is_exact(encoder.backbone, training=False)
    force_backend(VARLEN, lambda *args, **kwargs: Untrainable.apply(varlen_attn(*args, **kwargs)))
    assert trials.packing_is_exact(encoder.backbone, training=False)
    assert not trials.packing_is_exact(encoder.backbone, training=True)
    force_backend(
        VARLEN, lambda *args, **kwargs: varlen_attn(*args, **kwargs) * (torch.nan if torch.is_grad_enabled() else 1)
    )
    assert not trials.packing_is_exact(encoder.backbone, training=True)


@pytest.mark.parametrize("works", [True, False])
def test_packing_is_verified_once_on_a_new_device(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    encoder = load(folder_of("llama")).eval()
    expected, verified = embed(encoder), []
    # There is no other device here to go to: the encoder is told that its weights are on one.
    monkeypatch.setattr(Encoder, "device", torch.device("cuda"))
    monkeypatch.setattr(
        "angle.modeling.encoder.packing_is_exact",
        lambda backbone, training: verified.append((backbone, training)) or works,
    )
    assert_close_to_scale(embed(encoder), expected)
    assert_close_to_scale(embed(encoder), expected)
    assert verified == [(encoder.backbone, False)]
    assert encoder.is_packed == encoder.packable == works
    assert encoder.packing_failed != works
    assert (encoder.padding_fraction(np.array([3, 1])) == 0) == works


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of rows of format C."""
    pairs = ({"text": one, "positive": other} for one in TEXTS for other in TEXTS if one != other)
    return write_jsonl(tmp_path / "rows.jsonl", pairs)


@pytest.mark.parametrize("teacher", [False, True])
def test_packing_can_be_turned_off(folder_of: Callable[[str], str], tmp_path: Path, rows: Path, teacher: bool) -> None:
    """The same embeddings and gradients, and padding that is reported."""
    packed, padded = [], []
    for setting, actual in (("auto", packed), ("off", padded)):
        config = build_config(
            {
                "model": {"name_or_path": folder_of("bert"), "max_length": 32},
                "data": {"train": {"name_or_path": str(rows)}},
                "teacher": {"enabled": True, "name_or_path": "self"} if teacher else {},
                "train": {
                    "packing": setting, "max_steps": 2, "logging_steps": 1, "save_steps": 0, "batch_size": 8,
                    "output_dir": str(tmp_path / setting),
                },
            },
            TrainConfig,
        )  # fmt: skip
        components = setup.build(config, start_accelerator(config.train.mixed_precision))
        encoders = [components.encoder] + ([components.teacher.encoder] if components.teacher else [])
        assert len(encoders) == 1 + teacher
        assert all(encoder.is_packed == (setting == "auto") for encoder in encoders)
        for encoder in encoders:
            embeddings = embed(encoder.eval())
            embeddings.sin().sum().backward() if embeddings.requires_grad else None
            actual += [embeddings, *gradients(encoder)]
        folder = fit(config).folder
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        fractions = [line["padding_share"] for line in lines if "padding_share" in line]
        assert len(fractions) == 2
        assert all((fraction > 0) == (setting == "off") for fraction in fractions)
        assert f"texts {'packed' if setting == 'auto' else 'padded'}\n" in (folder / "train.log").read_text()
    for one, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(one.abs().max().item(), 1))


def test_a_run_verifies_packing_in_its_own_precision_and_reports_it(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, rows: Path
) -> None:
    verified = []

    def fail(encoder: Encoder, *, training: bool = False) -> None:
        verified.append((training, torch.is_autocast_enabled("cpu"), next(encoder.parameters()).device.type))
        encoder.packable, encoder.packing_failed = False, True

    monkeypatch.setattr(Encoder, "verify_packing", fail)  # here is no device on which it could fail
    settings = {
        "model": {"name_or_path": folder_of("bert"), "max_length": 32},
        "data": {"train": {"name_or_path": str(rows)}},
        "train": {"mixed_precision": "bf16"},
    }
    config = build_config(settings, TrainConfig)
    accelerator = start_accelerator(config.train.mixed_precision)
    components = setup.build(config, accelerator)
    assert verified == [(True, True, "cpu")]
    lines = banner(components.config, components.encoder, components.data, components.total_steps, accelerator)
    message = dict(lines)["device"]
    assert "bf16, texts padded, for packed ones failed the comparison on this device" in message

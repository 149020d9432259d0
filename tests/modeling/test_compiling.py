"""Compiled layers against plain ones: embeddings, gradients, whole runs, and how often they are compiled."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO, write_jsonl
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import AlbertConfig, AlbertModel

from angle.config import BillmConfig, LoraConfig, ModelConfig, PoolingConfig, TrainConfig
from angle.config.build import build_config
from angle.errors import ConfigError
from angle.modeling.compiling import compile_layers
from angle.modeling.encoder import Encoder
from angle.modeling.tiny import tiny_tokenizer
from angle.tracking.tracker import Tracker
from angle.training import setup
from angle.training.accelerator import start_accelerator
from angle.training.gradient_cache import GradientCache, micro_batches
from angle.training.loop import fit

#: Model, whether its texts are packed, first bidirectional layer, and whether it has LoRA and activation checkpointing.
CASES = [
    ("bert", True, None, False),
    pytest.param("bert", False, None, False, marks=pytest.mark.slow),
    pytest.param("llama", True, 1, True, marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the compiler of kernels, which takes long; what is compiled anew is decided before it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def load(folder: str, packed: bool, start: int | None, adapted: bool) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder.load(
        ModelConfig(folder, attn_implementation=None if packed else "sdpa", gradient_checkpointing=adapted, layers=2),
        PoolingConfig("avg"),
        LoraConfig(enabled=True, dropout=0.0, target_modules=["q_proj", "down_proj"]) if adapted else None,
        None if start is None else BillmConfig(enabled=True, start_index=start),
    )
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert encoder.is_packed == packed
    return encoder.train()


def batches(count: int) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches of other numbers of texts and tokens, no two texts of the same length in one of them."""
    random = np.random.default_rng(0)
    for _ in range(count):
        lengths = random.permutation(np.arange(2, 40))[: random.integers(8, 13)]
        yield torch.from_numpy(random.integers(5, 100, lengths.sum())), lengths


def results(encoder: Encoder, ids: Tensor, lengths: Any) -> list[Tensor]:
    """Return embeddings and gradients."""
    encoder.zero_grad()
    embeddings = encoder(ids, lengths)
    embeddings.sin().sum().backward()
    return [embeddings.detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)]


def close(actual: list[Tensor], expected: list[Tensor]) -> None:
    scale = max(tensor.abs().max().item() for tensor in expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale)


@pytest.mark.usefixtures("quick_backend")
@pytest.mark.parametrize(("name", "packed", "start", "adapted"), CASES)
def test_layers_are_compiled_once_for_batches_of_every_size(
    folder_of: Callable[[str], str], name: str, packed: bool, start: int | None, adapted: bool
) -> None:
    plain, compiled = (load(folder_of(name), packed, start, adapted) for _ in range(2))
    names = list(compiled.state_dict())
    compile_layers(compiled)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert list(compiled.state_dict()) == names
    actual = []
    for batch in batches(3):
        close(results(compiled, *batch), results(plain, *batch))
        actual.append(counters["stats"]["unique_graphs"])
    # A group of padded texts that has one text alone, as in the trial, is compiled apart; packed ones are one row.
    assert actual[1:] == actual[:-1]
    assert not packed or actual[0] == graphs
    with torch.no_grad():
        for batch in batches(3):
            close([compiled.eval()(*batch)], [plain.eval()(*batch)])
            actual.append(counters["stats"]["unique_graphs"])
    assert actual[-1] == actual[-3] > actual[0]


def test_the_trial_changes_neither_rng_state_nor_gradients(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, disable=True))
    encoder = Encoder.load(folder_of("bert")).eval()
    dice = torch.get_rng_state()
    compile_layers(encoder)
    assert torch.equal(torch.get_rng_state(), dice)
    assert not encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_a_compiler_that_fails_is_named(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        logging.getLogger("torch").warning("a traceback")  # as where no C++ compiler is found
        raise RuntimeError("out of registers\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    encoder = load(folder_of("bert"), True, None, False).eval()
    with pytest.raises(ConfigError) as caught:
        compile_layers(encoder)
    assert str(caught.value) == "train.compile=true cannot work here (RuntimeError: out of registers): leave it out."
    assert "a traceback" not in caplog.messages
    assert logging.root.isEnabledFor(logging.WARNING)
    assert not encoder.training


def test_a_model_without_a_list_of_layers_is_refused(tmp_path: Path) -> None:
    small = AlbertConfig(vocab_size=200, embedding_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2)
    AlbertModel(small).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^train.compile=true cannot work with AlbertModel, which has no list of"):
        compile_layers(Encoder.load(str(tmp_path)))


def test_the_compiler_is_not_imported_without_compilation() -> None:
    program = "import sys, angle.training.loop, angle.api.angle; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_dropout_within_compiled_graphs_is_reproduced(folder_of: Callable[[str], str]) -> None:
    """As on a GPU: there dropout is torch's, part of the graph, and drawn by the compiler in a way of its own."""
    settings = {
        "model": {"name_or_path": folder_of("bert"), "attn_implementation": "sdpa", "kernels": []},
        "data": {"train": {"name_or_path": "sample"}},
        "train": {"compile": True, "batch_size": 8, "dropout": "own"},
    }
    config = build_config(settings, TrainConfig)
    accelerator = start_accelerator(config.train.mixed_precision)
    made = setup.build(config, accelerator)
    graphs, student = counters["stats"]["unique_graphs"], made.trainable.train()
    batch = next(made.data.train.steps(0))[0]
    parts = micro_batches(batch.max_lengths, 60)
    assert len(parts) > 2
    torch.manual_seed(5)
    loss = GradientCache(student, made.objective, None, accelerator, 60).forward_backward(batch)
    actual, dice = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}, torch.rand(1)
    student.zero_grad()
    torch.manual_seed(5)
    embeddings = torch.cat([student(*batch.micro_batch(part, accelerator.device))[0] for part in parts])
    expected = made.objective(embeddings, batch.structure)
    assert torch.equal(torch.rand(1), dice)
    expected.total.backward()
    torch.testing.assert_close(loss.total, expected.total.detach(), rtol=1e-6, atol=0)
    close(list(actual.values()), [p.grad for p in student.parameters() if p.grad is not None])
    assert counters["stats"]["unique_graphs"] > graphs > 0
    torch.manual_seed(6)
    assert GradientCache(student, made.objective, None, accelerator, 60).forward_backward(batch).total != loss.total


@pytest.mark.slow
@pytest.mark.usefixtures("quick_backend")
def test_a_compiled_run_resumes_and_saves_an_ordinary_model(
    folder_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", ({"text": f"a {x}", "positive": f"the {x}"} for x in "bcdefghijk"))

    def settings(name: str, **train: Any) -> TrainConfig:
        given = {
            "model": {"name_or_path": folder_of("bert"), "max_length": 32},
            "data": {"train": {"name_or_path": str(rows)}},
            "train": {"max_steps": 4, "save_steps": 2, "batch_size": 8, "output_dir": str(tmp_path / name)} | train,
        }
        return build_config(given, TrainConfig)

    class StoppedError(Exception):
        pass

    steps: list[int] = []

    def stop(_: Tracker) -> None:
        steps.append(len(steps))
        if len(steps) == 3:
            raise StoppedError

    fit(settings("plain"))
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "advance", stop)
        with pytest.raises(StoppedError):
            fit(settings("broken", compile=True))
    fit(settings("broken", compile=True))
    assert counters["stats"]["unique_graphs"] > 0
    log = (tmp_path / "broken" / "train.log").read_text()
    assert "texts packed, compiled" in log
    assert "at step 2 from" in log
    plain, actual = (tmp_path / name / "final" for name in ("plain", "broken"))
    assert sorted(path.name for path in actual.iterdir()) == sorted(path.name for path in plain.iterdir())
    expected, weights = (load_file(folder / "model.safetensors") for folder in (plain, actual))
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        if not name.endswith("key.bias"):  # softmax ignores it: its gradient is rounding, which Adam scales up
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)
    embeddings = (Encoder.load(str(folder)).encode(["a b", "the c d"]) for folder in (actual, plain))
    torch.testing.assert_close(*embeddings, rtol=0, atol=1e-4)

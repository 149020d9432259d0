"""Teachers: their states, which students they suit, the cache of their embeddings, and training towards them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import sample_rows, write_jsonl
from torch import Tensor, nn

from angle import ConfigError, Encoder, ModelConfig, PoolingConfig, TrainConfig, build_config, fit
from angle.cache import cache_folder
from angle.config import LoraConfig
from angle.training.run_folder import RunFolder
from angle.training.teacher import Teacher, load_teacher

SELF = {"enabled": True, "name_or_path": "self"}
TEXTS = ["a dog chases the cat", "x", "the woman eats an apple in the garden", "two birds"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Triples; some texts stand in several."""
    return write_jsonl(tmp_path / "rows.jsonl", sample_rows("B", "train", 24))


def settings(folder: str, rows: Path, output: Path, **groups: dict[str, Any]) -> TrainConfig:
    return build_config(
        {
            "model": {"name_or_path": folder},
            "pooling": {"strategy": "avg"},
            "data": {"train": {"name_or_path": str(rows)}},
            "train": {"batch_size": 8, "max_steps": 4, "logging_steps": 1, "save_steps": 0, "output_dir": str(output)},
            **groups,
        },
        TrainConfig,
    )


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def states_of(teacher: Teacher, encoder: Encoder) -> Tensor:
    tokens = encoder.tokenizer(TEXTS)
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    return teacher(ids, tokens.lengths, np.arange(len(TEXTS)))


def load(config: TrainConfig, student: Encoder) -> Teacher:
    return load_teacher(config.teacher, student, config.model, config.billm, new_adapter=config.lora.enabled)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_student_with_an_adapter_is_its_own_teacher(folder_of: Callable[[str], str], rows: Path, name: str) -> None:
    """Its second copy, without the adapter and without dropout, would give the same states."""
    folder = folder_of(name)
    config = settings(
        folder, rows, rows, lora={"enabled": True, "r": 4}, teacher={"enabled": True, "name_or_path": "self"}
    )
    student = Encoder.load(config.model, PoolingConfig("avg"), config.lora).train()
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    teacher = load(config, student)
    assert teacher.encoder is student
    untrained = Encoder.load(ModelConfig(folder), PoolingConfig("avg")).encode(TEXTS)
    assert torch.equal(states_of(teacher, student), untrained)
    assert student.training
    assert not torch.equal(student.encode(TEXTS), untrained)


def test_a_student_without_adapters_has_a_copy(folder_of: Callable[[str], str], rows: Path) -> None:
    config = settings(folder_of("bert"), rows, rows, teacher=SELF)
    student = Encoder.load(config.model, PoolingConfig("avg"))
    teacher = load(config, student)
    assert teacher.encoder is not student
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())
    before = states_of(teacher, student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    assert torch.equal(states_of(teacher, student), before)


def test_teacher_named_as_the_student_is_self(folder_of: Callable[[str], str], rows: Path) -> None:
    folder = folder_of("bert")
    config = settings(folder, rows, rows, teacher={"enabled": True, "name_or_path": folder})
    assert config.teacher.name_or_path == "self"
    # Cut, it is another model: the whole one can teach its own first layers.
    cut = build_config(
        {"model": {"name_or_path": folder, "layers": 1}, "teacher": {"enabled": True, "name_or_path": folder}},
        TrainConfig,
    )
    assert cut.teacher.name_or_path == folder
    teacher = load(cut, Encoder.load(cut.model, PoolingConfig("avg")))
    assert teacher.encoder is not None
    assert teacher.encoder.layer_selector.num_layers == 3


def test_a_quantised_teacher_gives_nearly_the_same_states(folder_of: Callable[[str], str], rows: Path) -> None:
    measured = []
    for bits in (None, 8):
        teacher = {"enabled": True, "name_or_path": f"{folder_of('llama')}/", "load_kbit": bits}
        config = settings(folder_of("llama"), rows, rows, teacher=teacher, lora={"enabled": True})
        measured.append(states_of(load(config, Encoder.load(config.model)), Encoder.load(config.model)))
    similarity = torch.cosine_similarity(*measured)
    assert 0.99 < similarity.min() < 1


def test_teacher_with_another_tokenizer_is_refused(folder_of: Callable[[str], str], rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    encoder = Encoder.load(ModelConfig(folder_of("bert")), PoolingConfig("avg"))
    encoder.tokenizer.tokenizer.add_tokens(["zzz"])
    encoder.backbone.resize_token_embeddings(len(encoder.tokenizer.tokenizer))
    encoder.save(other)
    size = len(encoder.tokenizer.tokenizer)
    config = settings(str(other), rows, tmp_path / "run", teacher={"enabled": True, "name_or_path": folder_of("bert")})
    with pytest.raises(ConfigError) as caught:
        fit(config)
    assert str(caught.value) == (
        f"teacher.name_or_path={folder_of('bert')} has another tokenizer ({size - 1} tokens, the student's has {size}; "
        f"'zzz' is number {size - 1} for the student and no token for the teacher), so the student's tokens would mean "
        f"something else to it: choose a teacher with the student's tokenizer."
    )
    assert not (tmp_path / "run").exists()
    # The other way round, the teacher has a token that the student never writes.
    fit(settings(folder_of("bert"), rows, tmp_path / "run", teacher={"enabled": True, "name_or_path": str(other)}))


def wider(folder_of: Callable[[str], str], tmp_path: Path) -> str:
    """Return a teacher of 48 dimensions, where the student has 32."""
    from transformers import AutoConfig, AutoModel

    encoder = Encoder.load(ModelConfig(folder_of("bert")), PoolingConfig("avg"))
    config = AutoConfig.from_pretrained(folder_of("bert"), hidden_size=48)
    torch.manual_seed(3)
    encoder.backbone = AutoModel.from_config(config)
    encoder.save(tmp_path / "wider")
    return str(tmp_path / "wider")


def test_teacher_with_other_dimensions_needs_a_projection(
    folder_of: Callable[[str], str], rows: Path, tmp_path: Path
) -> None:
    name = wider(folder_of, tmp_path)
    with pytest.raises(ConfigError) as caught:
        fit(settings(folder_of("bert"), rows, tmp_path / "run", teacher={"enabled": True, "name_or_path": name}))
    assert str(caught.value) == (
        f"teacher.name_or_path={name} has 48 dimensions and the student 32: type teacher.projection=true to train a "
        f"linear map between them, or choose a teacher with as many."
    )


@pytest.mark.parametrize("pooling", ["auto", "tokens"])
def test_a_projection_learns_and_is_resumed(
    folder_of: Callable[[str], str], rows: Path, tmp_path: Path, pooling: str
) -> None:
    teacher = {
        **{"enabled": True, "name_or_path": wider(folder_of, tmp_path), "projection": True},
        **{"pooling": pooling, "temperature": 0.0, "mse_w": 1.0, "weight": 100.0},
    }
    config = settings(folder_of("bert"), rows, tmp_path / "run", teacher=teacher)
    config.train.max_steps, config.train.learning_rate, config.train.save_steps = 12, 1e-2, 6
    fit(config)
    measured = losses(tmp_path / "run", "loss/alignment")
    assert measured[-1] < 0.7 * measured[0]
    assert not any("projection" in path.name for path in (tmp_path / "run" / "final").iterdir())

    # The second half again, from its checkpoint, is the same to the bit.
    RunFolder(tmp_path / "run").update(finished=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000012")
    fit(config)
    assert losses(tmp_path / "run", "loss/alignment") == measured


def test_the_cache_of_a_teacher_that_normalises_has_what_it_teaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    encoder = Encoder.load("tiny")
    encoder.normalize = True
    teacher = Teacher(encoder)
    fresh = states_of(teacher, encoder)
    teacher.cache_embeddings(encoder.tokenizer(TEXTS))
    torch.testing.assert_close(states_of(teacher, encoder), fresh)


def test_cached_embeddings_train_as_fresh_ones_do(
    folder_of: Callable[[str], str], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path / "cache"))
    measured = {}
    for cached in (False, True):
        # Another adapter than the student's: a teacher of its own, whose weights are let go.
        teacher = {"enabled": True, "name_or_path": f"{folder_of('bert')}/", "cache": cached}
        fit(settings(folder_of("bert"), rows, tmp_path / str(cached), teacher=teacher))
        measured[cached] = losses(tmp_path / str(cached))
    assert measured[True] == pytest.approx(measured[False], rel=1e-5)
    (file,) = cache_folder("teachers").iterdir()
    modified = file.stat().st_mtime_ns
    fit(settings(folder_of("bert"), rows, tmp_path / "again", teacher=teacher))
    assert losses(tmp_path / "again") == measured[True]
    assert file.stat().st_mtime_ns == modified
    for number, damaged in enumerate((b"\x93NUMPY\1\0\x10\0{'descr': \xff(((\n", np.load(file)[1:])):
        if isinstance(damaged, bytes):
            file.write_bytes(damaged)
        else:
            np.save(file, damaged)
        fit(settings(folder_of("bert"), rows, tmp_path / f"damaged-{number}", teacher=teacher))
        assert losses(tmp_path / f"damaged-{number}") == measured[True]


@pytest.mark.parametrize("pooling", ["auto", "tokens"])
def test_teacher_loss_matches_reference(
    folder_of: Callable[[str], str], rows: Path, tmp_path: Path, pooling: str
) -> None:
    """The first step's loss, from the embeddings or the states of all texts of its rows."""
    student, teacher = folder_of("llama"), folder_of("qwen2")  # without dropout
    teacher_settings = {"enabled": True, "name_or_path": teacher, "pooling": pooling, "mse_w": 2.0, "temperature": 1.5}
    config = settings(student, rows, tmp_path / "run", teacher=teacher_settings)
    config.train.batch_size, config.train.max_steps = 24, 1
    fit(config)

    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    texts = [text for row in lines for text in row.values()]
    tokens, sides = Encoder.load(ModelConfig(student)).tokenizer(texts), []
    for name in (student, teacher):
        encoder = Encoder.load(ModelConfig(name), PoolingConfig("avg")).eval()
        with torch.no_grad():
            ids = torch.from_numpy(tokens.ids.astype(np.int64))
            embeddings, states = encoder.with_token_states(ids, tokens.lengths)
        sides.append((states if pooling == "tokens" else embeddings).double().numpy())
    x, t = sides
    px, pt = (np.exp(v / 1.5) / np.exp(v / 1.5).sum(1, keepdims=True) for v in (x, t))
    expected = (2 * ((x - t) ** 2).mean(1) + 1.5 * (pt * np.log(pt / px)).sum(1)).mean()
    assert losses(tmp_path / "run", "loss/alignment") == [pytest.approx(expected, rel=1e-4)]


def test_self_teacher_with_other_settings_is_a_copy(folder_of: Callable[[str], str], rows: Path) -> None:
    teacher_settings = SELF | {"dtype": "bfloat16"}
    config = settings(folder_of("llama"), rows, rows, lora={"enabled": True, "r": 4}, teacher=teacher_settings)
    student = Encoder.load(config.model, PoolingConfig("avg"), config.lora)
    teacher = load(config, student)
    assert teacher.encoder is not student
    assert teacher.encoder is not None
    assert teacher.encoder.backbone.dtype == torch.bfloat16


def test_an_adapter_on_some_layers_above_one_on_all(
    folder_of: Callable[[str], str], rows: Path, tmp_path: Path
) -> None:
    Encoder.load(ModelConfig(folder_of("llama")), lora=LoraConfig(enabled=True, r=4)).save(tmp_path / "below")
    lora = {"enabled": True, "target_modules": ["q_proj"]}
    config = settings(folder_of("llama"), rows, tmp_path / "run", teacher=SELF, lora=lora)
    config.model.adapter = str(tmp_path / "below")
    fit(config)
    assert len(losses(tmp_path / "run", "loss/alignment")) == 4


def test_teacher_with_another_revision_is_not_self(folder_of: Callable[[str], str]) -> None:
    model, teacher = {"name_or_path": "a/b"}, {"enabled": True, "name_or_path": "a/b", "revision": "v1"}
    assert build_config({"model": model, "teacher": teacher}, TrainConfig).teacher.name_or_path == "a/b"
    same = {"name_or_path": "a/b", "revision": "v1"}
    assert build_config({"model": same, "teacher": teacher}, TrainConfig).teacher.name_or_path == "self"


def test_messages_name_the_teacher_s_settings(folder_of: Callable[[str], str], rows: Path) -> None:
    teacher_settings = {"enabled": True, "name_or_path": folder_of("llama"), "pooling": "cls"}
    config = settings(folder_of("bert"), rows, rows, teacher=teacher_settings)
    with pytest.raises(ConfigError) as caught:
        load(config, Encoder.load(config.model, PoolingConfig("avg")))
    assert str(caught.value) == (
        "teacher.pooling=cls cannot work with LlamaModel: in a decoder the first token has seen no other; choose avg "
        "or last."
    )


def test_streams_cannot_be_cached() -> None:
    with pytest.raises(ConfigError, match=r"^teacher.cache=true cannot work with data.streaming=true"):
        build_config(
            {
                "data": {"streaming": True},
                "train": {"max_steps": 3},
                "teacher": {"enabled": True, "name_or_path": "self", "cache": True},
            },
            TrainConfig,
        )

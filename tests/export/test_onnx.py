"""ONNX files of converted folders: their graphs must give the encoder's own embeddings."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import start

from angle.config import ConvertConfig, ModelConfig, PoolingConfig
from angle.config.build import build_config
from angle.errors import ConfigError
from angle.export import onnx_files
from angle.export.onnx_files import write_onnx_files
from angle.export.plain_encode import run_by_onnx
from angle.export.sentence_transformers import convert, save_sentence_transformers
from angle.export.verification import TOLERANCE, compare_onnx, distances, expected_embeddings, texts_by_method, verify
from angle.modeling.encoder import Encoder
from benchmarks.generations import BILLM, decoder
from benchmarks.small_models import build

TEXTS = ["Rain.", "A lighthouse keeper reads by candlelight.", "x", "Quinces need a long autumn. " * 9, "Who? " * 5]


def export(encoder: Encoder, folder: Path) -> Path:
    """Write an encoder and its ONNX file to a folder, and return the file."""
    save_sentence_transformers(encoder, folder)
    sizes = write_onnx_files(folder, "float32", uses_token_types=False, trust_remote_code=False)
    path = folder / "onnx" / "model.onnx"
    assert sizes == {"onnx/model.onnx": path.stat().st_size}
    return path


def assert_same_in_any_batch(encoder: Encoder, path: Path) -> None:
    """Check that a graph makes what the encoder does of texts alone, padded, and together."""
    expected = encoder.encode(TEXTS)
    encoder.packable = False
    run_by_onnx(encoder, path)
    for batch_size in (1, 2, 5):
        assert distances(encoder.encode(TEXTS, batch_size=batch_size), expected).max() < 1e-9


def test_a_graph_takes_batches_of_any_size(tmp_path: Path) -> None:
    encoder = Encoder.load(ModelConfig("tiny", max_length=32, layers=1), PoolingConfig("avg")).eval()
    path = export(encoder, tmp_path / "new")
    assert_same_in_any_batch(encoder, path)
    assert b".py" not in path.read_bytes()  # where packages are on this machine


@pytest.mark.slow
def test_a_bidirectional_decoder_has_a_bidirectional_graph(tmp_path: Path) -> None:
    base = decoder(tmp_path / "llama", "llama", num_hidden_layers=1)
    encoder = Encoder.load(ModelConfig(base, max_length=32), PoolingConfig("avg"), billm=BILLM).eval()
    assert_same_in_any_batch(encoder, export(encoder, tmp_path / "new"))


@pytest.mark.slow
def test_large_files_keep_their_weights_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "LARGEST_FILE", 50_000)
    encoder = Encoder.load(ModelConfig("tiny", max_length=32, layers=1), PoolingConfig("avg")).eval()
    save_sentence_transformers(encoder, tmp_path / "new")
    sizes = write_onnx_files(tmp_path / "new", "int8", uses_token_types=False, trust_remote_code=False)
    names = ("model.onnx", "model_qint8_quantized.onnx")
    assert {path.name for path in (tmp_path / "new" / "onnx").iterdir()} == {
        *names,
        *(f"{name}_data" for name in names),
    }
    assert sizes["onnx/model.onnx"] > 3 * sizes["onnx/model_qint8_quantized.onnx"] > 300_000
    expected = encoder.encode(TEXTS)
    encoder.packable = False
    for name, tolerance in zip(names, (1e-9, 0.05), strict=True):
        run_by_onnx(encoder, tmp_path / "new" / "onnx" / name)
        assert distances(encoder.encode(TEXTS), expected).max() < tolerance


@pytest.mark.slow
def test_the_command_writes_compares_and_tells(tmp_path: Path) -> None:
    words = ("model.name_or_path=tiny", "pooling=cls_avg", "model.max_length=16", "model.layers=1", "onnx=int8")
    done = start("convert.py", *words, "model.prompts={query: 'Find: '}", "output_dir=new", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("ONNX")]
    assert lines[0].startswith("ONNX    onnx/model.onnx, 0.7 MB; the cosine distance is ")
    assert lines[1].startswith("ONNX    onnx/model_qint8_quantized.onnx, 0.2 MB; the cosine distance is ")
    names = ("model.onnx", "model_qint8_quantized.onnx")
    code = [f'SentenceTransformer("new", backend="onnx", model_kwargs={{"file_name": "{name}"}})' for name in names]
    card = (tmp_path / "new" / "README.md").read_text()
    assert all(f"model = {line}\n" in done.stdout and f"model = {line}\n" in card for line in code)
    assert {path.name for path in (tmp_path / "new" / "onnx").iterdir()} == {*names}


@pytest.mark.slow
def test_another_models_file_is_found_out(tmp_path: Path) -> None:
    encoders = [Encoder.load(ModelConfig("tiny", max_length=16, layers=1), PoolingConfig("avg")).eval() for _ in "ab"]
    with torch.no_grad():
        encoders[1].backbone.embeddings.word_embeddings.weight.mul_(1.5)
    path = export(encoders[0], tmp_path / "a")
    save_sentence_transformers(encoders[1], tmp_path / "b")
    shutil.copytree(path.parent, tmp_path / "b" / "onnx")
    texts = texts_by_method(encoders[1].tokenizer)
    arguments = (tmp_path / "b", texts, expected_embeddings(encoders[1], texts), torch.float32)
    with pytest.raises(
        ConfigError, match=r"^onnx/model\.onnx makes other embeddings than the model, by .* leave onnx out"
    ):
        verify(*arguments, onnx=("onnx/model.onnx",))


def test_rounded_embeddings_must_keep_the_order_of_texts() -> None:
    torch.manual_seed(0)
    expected = torch.randn(20, 16)
    near, far = (expected + scale * torch.randn(20, 16) for scale in (0.1, 1.0))
    compared = compare_onnx({"plain": expected, "int8": near}, expected, TOLERANCE)
    assert (compared["plain"].largest, compared["plain"].rank_correlation) == (0, 1)
    assert 0.9 < compared["int8"].rank_correlation < 1
    assert 0 < compared["int8"].mean < compared["int8"].largest < 0.05
    assert "e-03 on average and " in str(compared["int8"])
    for bad in (far, expected * torch.nan):
        words = (
            r"^onnx=int8 changes .* correlation of similarities is (\d\d\.\d\d|nan) where 90 is the least, so .*32\.$"
        )
        with pytest.raises(ConfigError, match=words):
            compare_onnx({"plain": expected, "int8": bad}, expected, TOLERANCE)
        with pytest.raises(ConfigError, match=r"^plain makes other embeddings"):
            compare_onnx({"plain": bad}, expected, TOLERANCE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"onnx": "int4"}, "onnx=int4 is not .*float32.*int8"),
        (
            {"onnx": "int8", "merge": False},
            "^onnx=int8 cannot work with merge=false: .* type merge=true, or leave onnx out",
        ),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config({"model": {"name_or_path": "tiny"}, **settings}, ConvertConfig)


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None if name == "onnxruntime" else name)
    words = r"^onnx=float32 needs the package onnxruntime: type pip install -e '\.\[onnx\]'\.$"
    with pytest.raises(ConfigError, match=words):
        convert(ConvertConfig(ModelConfig("tiny"), onnx="float32", output_dir=str(tmp_path / "new")))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path, unverified: None) -> None:
    build("longformer", tmp_path / "longformer")
    config = ConvertConfig(ModelConfig(str(tmp_path / "longformer")), PoolingConfig("avg"), onnx="float32")
    config.output_dir = str(tmp_path / "new")
    words = r"^onnx=float32 cannot work with this model, which torch cannot write as an ONNX file \(.+\), so nothing is"
    with pytest.raises(ConfigError, match=words):
        convert(config)
    assert [path.name for path in tmp_path.iterdir()] == ["longformer"]

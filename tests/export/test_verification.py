"""What convert writes is loaded in a new process, and compared."""

from pathlib import Path

import pytest
import torch

from angle.config import ConvertConfig, ModelConfig, PoolingConfig
from angle.errors import ConfigError
from angle.export import sentence_transformers
from angle.export.sentence_transformers import convert
from angle.export.verification import distances, texts_to_compare
from angle.modeling.encoder import Encoder
from angle.modeling.pooling import SENTENCE_TRANSFORMERS_KEYS


def test_distances_count_directions_and_lengths() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3, 64)
    assert distances(expected, expected).max() == 0
    turned = torch.linalg.qr(torch.randn(64, 64))[0] * 1e-3 + torch.eye(64)
    turned = torch.linalg.qr(turned)[0]
    actual = expected @ (turned * turned.diagonal().sign())
    cosine_distances = 1 - torch.cosine_similarity(actual.double(), expected.double())
    torch.testing.assert_close(distances(actual, expected), cosine_distances, rtol=1e-2, atol=0)
    assert distances(1.1 * expected, expected).min() > 1e-3
    assert not (distances(expected * torch.nan, expected).max() <= 1e-5)


def test_texts_are_short_and_longer_than_the_encoder_reads() -> None:
    tokenizer = Encoder.load("tiny").tokenizer
    texts = texts_to_compare(tokenizer.max_length)
    assert len(set(texts)) == 20
    lengths = tokenizer(texts).lengths
    assert lengths.min() <= 3
    assert (lengths == tokenizer.max_length).any()
    assert len(set(lengths.tolist())) > 10
    assert max(len(text.split()) for text in texts_to_compare(3000)) == 6000


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["pools otherwise", "does not load"])
def test_what_differs_or_does_not_load_is_not_kept(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "pools otherwise":
        keys = SENTENCE_TRANSFORMERS_KEYS | {"mean": "pooling_mode_max_tokens", "max": "pooling_mode_mean_tokens"}
        monkeypatch.setattr(sentence_transformers, "SENTENCE_TRANSFORMERS_KEYS", keys)
        words = (
            r"^sentence-transformers makes other embeddings .* by \d\.\de[-+]\d+ in cosine where 1e-05 is allowed, so "
        )
    else:
        monkeypatch.setattr(
            sentence_transformers, "_module", lambda *_: {"type": "sentence_transformers.made_up", "path": ""}
        )
        words = r"^sentence-transformers does not load what was written \(\w+: .*made_up.*\), so nothing is kept: use"
    with pytest.raises(ConfigError, match=words):
        convert(ConvertConfig(ModelConfig("tiny"), PoolingConfig("avg"), output_dir=str(tmp_path / "new")))
    assert not list(tmp_path.iterdir())


def test_without_sentence_transformers_nothing_is_compared(tmp_path: Path, unverified: None) -> None:
    done = convert(ConvertConfig(ModelConfig("tiny"), output_dir=str(tmp_path / "new")))
    assert done.verification is None
    assert (done.folder / "modules.json").is_file()

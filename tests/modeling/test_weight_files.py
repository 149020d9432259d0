"""Which files a model's weights are in, and what changes their fingerprint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from angle.errors import ConfigError
from angle.modeling.weight_files import BLOCK_BYTES, FINGERPRINT_BYTES, fingerprint, weight_files


def test_a_fingerprint_is_of_the_content_and_not_of_the_name(tmp_path: Path) -> None:
    content = bytearray(os.urandom(10_000))
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(content)
    one = fingerprint([tmp_path / "one"])
    assert one == fingerprint([tmp_path / "two"])
    for position in range(len(content)):
        if position % 997 == 0:
            content[position] ^= 1
            (tmp_path / "one").write_bytes(content)
            assert fingerprint([tmp_path / "one"]) != one
            content[position] ^= 1
    (tmp_path / "one").write_bytes(content + b"\0")
    assert fingerprint([tmp_path / "one"]) != one


def test_a_large_file_is_read_in_blocks_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    path, size = tmp_path / "large", 3 * FINGERPRINT_BYTES
    path.touch()
    os.truncate(path, size)
    untouched, prints = fingerprint([path]), set()
    for start in (0, size // 2, size - 3 * BLOCK_BYTES):
        with path.open("r+b") as file:
            file.seek(start)
            file.write(os.urandom(3 * BLOCK_BYTES))
        prints.add(fingerprint([path]))
    assert len(prints - {untouched}) == 3


def test_the_files_that_transformers_loads(tmp_path: Path) -> None:
    model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=1))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    (tmp_path / "one" / "model.fp16.safetensors").write_bytes(b"of no use")
    (tmp_path / "one" / "pytorch_model.bin").write_bytes(b"of no use")
    assert weight_files(str(tmp_path / "one")) == [tmp_path / "one" / "model.safetensors"]
    shards = weight_files(str(tmp_path / "sharded"))
    assert shards == sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert weight_files(f"{tmp_path}/model.gguf") == []
    assert weight_files("tiny") == weight_files("nobody/nothing") == weight_files("no such name") == []


def test_a_damaged_list_of_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"^model.safetensors.index.json of .* is damaged: it has no weight_map"):
        weight_files(str(tmp_path))

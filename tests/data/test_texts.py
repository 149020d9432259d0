"""Texts in blocks: what bounds a block, and a file that changes between two readings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from angle.config import LimitsConfig, SourceConfig
from angle.data import texts as module
from angle.data.texts import TextSource
from angle.errors import DataError


def source_of(path: Path, **options: Any) -> TextSource:
    return TextSource(SourceConfig(str(path)), "rows", LimitsConfig(), **options)


def test_a_block_is_bounded_in_rows_and_in_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    monkeypatch.setattr(module, "BLOCK_CHARACTERS", 10)
    lengths = [1, 1, 1, 1, 9, 1, 25, 0, 8, 3, 7]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * length, "more": "y"} for length in lengths])
    source = source_of(path)
    survey = source.survey(lambda _: None)
    blocks = {number: [len(row.text) for row in rows] for number, rows in source.blocks(survey, range(99))}
    assert list(blocks.values()) == [[1, 1, 1], [1, 9], [1], [25], [0, 8], [3, 7]]
    assert survey.first_rows.tolist() == [0, 3, 5, 6, 7, 9, 11]
    some = dict(source.blocks(survey, {1, 4}))
    assert {number: [len(row.text) for row in rows] for number, rows in some.items()} == {1: [1, 9], 4: [0, 8]}
    wider = source_of(path, extra_columns=("more",)).survey(lambda _: None)
    assert wider.first_rows.tolist() == [0, 3, 4, 5, 6, 7, 9, 10, 11]
    assert wider.fingerprint != survey.fingerprint


def test_texts_that_differ_in_where_they_end_have_another_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for number, pair in enumerate((("ab", "c"), ("a", "bc"), ("ab", "cc"))):
        path = write_jsonl(tmp_path / f"{number}.jsonl", [{"text": text} for text in pair])
        prints.add(source_of(path).survey(lambda _: None).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize("later", [["a", "b", "d"], ["a", "b"]])
def test_a_file_that_changes_is_refused(tmp_path: Path, later: list[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in "abc"])
    source = source_of(path)
    survey = source.survey(lambda _: None)
    write_jsonl(path, [{"text": text} for text in later])
    with pytest.raises(DataError) as error:
        list(source.blocks(survey, {0}))
    assert str(error.value) == f"rows: {path} was written to in the meantime: start again once it is complete."

"""Labels that are all the same are refused wherever a correlation with them would be taken."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import SpyTokenizer, snapshot, start, write_jsonl

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.data.plan import BatchSpec
from angle.errors import DataError
from angle.training.data import load_data

PAIRS = [{"text1": f"a cat {n}", "text2": f"the dog {n}", "label": n % 5} for n in range(8)]
POSITIVES = [{"text": f"a cat {n}", "positive": f"the dog {n}"} for n in range(40)]
SAME = [row | {"label": 1} for row in PAIRS]
#: Rows, and settings, for which no correlation exists.
CONSTANT: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "numbers": (SAME, {}),
    "texts": ([row | {"label": "1.0"} for row in PAIRS], {}),
    "one row": ([PAIRS[1]], {}),
    "equal as they are stored": ([row | {"label": 1 + number * 1e-12} for number, row in enumerate(PAIRS)], {}),
    "by the map": (PAIRS, {"label_map": dict.fromkeys(map(str, range(5)), 1.0)}),
}


@pytest.mark.parametrize("labels", CONSTANT)
@pytest.mark.parametrize("purpose", ["valid", "valid_sts", "test"])
def test_labels_that_are_all_the_same_are_refused_where_a_correlation_is_taken(tmp_path, labels, purpose):
    rows, settings = CONSTANT[labels]
    write_jsonl(tmp_path / "train.jsonl", POSITIVES)
    write_jsonl(tmp_path / "same.jsonl", rows)
    data = {"name_or_path": str(tmp_path / "same.jsonl"), **settings}
    train = {"name_or_path": str(tmp_path / "train.jsonl")}
    config = build_config({"data": {"train": train, purpose: data}}, TrainConfig)
    with pytest.raises(DataError) as caught:
        load_data(config.data, "auto", SpyTokenizer(), BatchSpec(4))
    assert (
        str(caught.value) == f"data.{purpose}: every label is 1, so no correlation exists; give graded or mixed labels."
    )


@pytest.mark.slow
def test_the_command_refuses_labels_that_are_all_the_same(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", POSITIVES)
    write_jsonl(tmp_path / "same.jsonl", SAME)
    before = snapshot(tmp_path)
    words = ("data=files", "data.train.name_or_path=train.jsonl", "data.valid.name_or_path=same.jsonl")
    done = start("train.py", *words, folder=tmp_path)
    assert (
        done.stderr == "Error: data.valid: every label is 1, so no correlation exists; give graded or mixed labels.\n"
    )
    assert (done.stdout, done.returncode, snapshot(tmp_path)) == ("", 1, before)

"""Which format a table has, and which renaming is proposed when it has none."""

from __future__ import annotations

import pytest

from angle.data.formats import detect_format, resolve_format
from angle.data.purposes import TASKS
from angle.errors import DataError

FORMATS = "(A: text1, text2, label; B: text, positive, negative; C: text, positive)"


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ("text1 text2 label", "A"),
        ("label text2 text1 extra", "A"),
        ("text positive negative", "B"),
        ("text positive", "C"),
        ("text positive extra", "C"),
        ("text1 text2 label text positive negative", "A"),
        ("text1 text2 label text positive", "A"),
        ("text positive negative label", "B"),
        ("text positive label", None),
        ("text1 text2", None),
        ("text", None),
        ("Text Positive", None),
        ("", None),
    ],
)
def test_detection(columns, name):
    detected = detect_format(columns.split())
    assert (detected and detected.name) == name


@pytest.mark.parametrize("name", "ABC")
def test_a_requested_format_is_taken_where_several_fit(name):
    columns = ["text1", "text2", "label", "text", "positive", "negative"]
    assert resolve_format(columns, name, "train", "x").name == name


def test_text_and_positive_with_a_label_can_be_requested_as_format_c():
    assert resolve_format(["text", "positive", "label"], "C", "train", "x").name == "C"


@pytest.mark.parametrize(
    ("columns", "renaming"),
    [
        ("sentence1 sentence2 score", "text1: sentence1, text2: sentence2, label: score"),
        ("premise hypothesis label", "text1: premise, text2: hypothesis"),
        ("Sentence1 Sentence2 Label", "text1: Sentence1, text2: Sentence2, label: Label"),
        ("anchor positive negative", "text: anchor"),
        ("query pos neg", "text: query, positive: pos, negative: neg"),
        ("question answer", "text: question, positive: answer"),
    ],
)
def test_the_message_on_columns_of_no_format_has_the_renaming(columns, renaming):
    names = columns.split()
    with pytest.raises(DataError) as caught:
        resolve_format(names, "auto", "valid", "x.csv")
    assert str(caught.value) == (
        f"data.valid: x.csv has the columns {', '.join(names)}, which match no format {FORMATS}. "
        f"Rename them: 'data.valid.columns={{{renaming}}}'"
    )


def test_the_message_on_a_task_names_the_settings_of_evaluate():
    with pytest.raises(DataError) as caught:
        resolve_format(["s1", "s2", "score"], "A", TASKS, "x.csv")
    assert str(caught.value) == (
        "tasks: x.csv has the columns s1, s2, score, but format A needs text1, text2, label. "
        "Rename them: 'columns={text1: s1, text2: s2, label: score}'"
    )
    with pytest.raises(DataError) as caught:
        resolve_format(["text", "positive"], "A", TASKS, "x.csv")
    assert str(caught.value) == (
        "tasks: x.csv has the columns text, positive (format C), but format A needs text1, text2, label. "
        "Only pairs with labels can be measured: give a file in format A."
    )


def test_no_renaming_is_suggested_for_too_few_columns():
    with pytest.raises(DataError) as caught:
        resolve_format(["text"], "auto", "train", "x.csv")
    assert "Rename" not in str(caught.value)


def test_rows_of_another_format_name_the_option_that_fits():
    with pytest.raises(DataError) as caught:
        resolve_format(["text", "positive", "negative"], "A", "train", "x.csv")
    assert str(caught.value) == (
        "data.train: x.csv has the columns text, positive, negative (format B), but format A needs "
        "text1, text2, label. Type loss=format_b to train on it as it is."
    )


def test_rows_of_no_format_are_renamed_to_the_requested_one():
    with pytest.raises(DataError) as caught:
        resolve_format(["query", "document"], "C", "train", "x.csv")
    assert str(caught.value) == (
        "data.train: x.csv has the columns query, document, but format C needs text, positive. "
        "Rename them: 'data.train.columns={text: query, positive: document}'"
    )


@pytest.mark.parametrize(("column", "name"), [("text1;text2;label", "semicolons"), ("text\tpositive", "tabs")])
def test_a_file_with_other_separators_between_its_cells(column: str, name: str) -> None:
    with pytest.raises(DataError, match=f"has one column, .* whose cells seem to be separated by {name}: a .csv file"):
        resolve_format([column], "auto", "train", "FILE")


@pytest.mark.parametrize("purpose", ["valid_sts", "test"])
def test_data_to_evaluate_on_is_not_suggested_for_training(purpose: str) -> None:
    with pytest.raises(DataError, match="Only pairs with labels can be measured: give a file in format A"):
        resolve_format(["text", "positive"], "A", purpose, "FILE")

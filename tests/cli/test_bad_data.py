"""What a data file hides is refused: one sentence, before anything is written, in bounded time and memory.

Each row is checked where training reads its data and by the real command, of each kind one as a process of its own.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from conftest import SpyTokenizer, bounded, snapshot, start, start_here

from angle.config import TrainConfig
from angle.config.build import build_config
from angle.config.keys import unflatten
from angle.data.plan import BatchSpec
from angle.errors import DataError
from angle.training.data import load_data

Content = str | bytes | Callable[[Path], object]
#: File, its content, the message behind its name, further settings, and whether it is also tried by the command.
Case = tuple[str, Content, str, dict[str, Any], bool]

PAIRS = [{"text1": f"a cat {n}", "text2": f"the dog {n}", "label": n % 5} for n in range(8)]
POSITIVES = [{"text": f"a cat {n}", "positive": f"the dog {n}"} for n in range(40)]
COLUMNS: dict[str, list[Any]] = {name: [row[name] for row in POSITIVES] for name in ("text", "positive")}
DEEP = "[" * 100_000 + "]" * 100_000
WRITE_ROWS = "write one object a row, with pandas by to_json(path, orient='records', lines=True)."
OPEN_QUOTE = "has a quotation mark that is not closed, or not doubled inside a quoted cell"


def lines(rows: list[dict[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def case(
    name: str, content: Content, text: str, *, command: bool = False, settings: dict[str, Any] | None = None
) -> Case:
    return name, content, text, settings or {}, command


def value(column: str, cell: Any, text: str, *, command: bool = False) -> Case:
    """Return a case of eight pairs, one of which has another cell."""
    rows = [row | ({column: cell} if number == 2 else {}) for number, row in enumerate(PAIRS)]
    return case("a.jsonl", lines(rows), f"line 3: {column} {text}", command=command)


def raw(cells: str, text: str, name: str = "a.jsonl") -> Case:
    """Return a case of a pair that is written by hand, behind another one."""
    first, pair = json.dumps(PAIRS[0]), f'{{"text1": "a", "text2": "b", {cells}}}'
    return case(name, f"{first}\n{pair}\n" if name == "a.jsonl" else f"[{first},\n{pair}]", f"line 2 {text}")


HALF = "half of a character, which cannot be tokenised: write the whole or none of it (1 such row)."
DEEP_BRACKETS = "has brackets in brackets, too deep to be read."
TWICE = "has the key 'label' twice in one object: leave one out."
DIGITS = "has a number of thousands of digits: write it as a text."
NO_NUMBER = "which is not a number (1 such row); give numbers, or map names: 'data.train.label_map="
VALUES = {
    "half a character": value("text1", "a \ud83d b", rf"has '\ud83d', {HALF}", command=True),
    "its other half": value("text2", "\ude00", rf"has '\ude00', {HALF}"),
    "half a character in a list": value("text2", ["b", "\ud83d"], rf"has '\ud83d', {HALF}"),
    "a label of 400 digits": value(
        "label", 10**400, f"is 1{'0' * 37}...{'0' * 39}, which is not a finite number (1 such row)."
    ),
    "a label of 400 digits as text": value(
        "label", "1" * 400, f"is {'1' * 400}, which is not a finite number (1 such row)."
    ),
    "5,000 digits": raw(f'"label": {"9" * 5000}', DIGITS),
    "5,000 digits in a list": raw(f'"label": {"9" * 5000}', DIGITS, "a.json"),
    "5,000 digits elsewhere": raw(f'"label": 1, "id": {"9" * 5000}', DIGITS),
    "deep brackets": raw(f'"label": 1, "x": {DEEP}', DEEP_BRACKETS),
    "deep brackets in a list": raw(f'"label": 1, "x": {DEEP}', DEEP_BRACKETS, "a.json"),
    "deep objects": raw('"label": ' + '{"a":' * 100_000, DEEP_BRACKETS),
    "equal keys": raw('"label": 1, "label": 2', TWICE),
    "equal keys in a list": raw(
        '"label": 1, "text2": "c"', "has the key 'text2' twice in one object: leave one out.", "a.json"
    ),
    "equal keys with spaces": raw(
        '"label" : 1, "label" : 2', "has the key 'label' twice in one object: leave one out."
    ),
    "equal keys further in": raw(
        '"label": 1, "meta": {"a": 1, "a": 2}', "has the key 'a' twice in one object: leave one out."
    ),
    "a label with an underscore": value("label", "1_000", f"is '1_000', {NO_NUMBER}{{1_000: NUMBER}}'."),
    "a label of other digits": value("label", "\u0661", f"is '\u0661', {NO_NUMBER}{{\u0661: NUMBER}}'."),
    "true": value("label", True, f"is True, {NO_NUMBER}{{True: NUMBER}}'."),
    "a label in a list": value("label", [1], "is [1], which is not a number (1 such row); give numbers."),
    "a label in an object": value("label", {"a": 1}, "is {'a': 1}, which is not a number (1 such row); give numbers."),
    "NaN": value("label", float("nan"), "is nan, which is not a finite number (1 such row)."),
    "infinity": value("label", float("inf"), "is inf, which is not a finite number (1 such row)."),
    "minus infinity": value("label", float("-inf"), "is -inf, which is not a finite number (1 such row)."),
    "NaN as text": value("label", "nan", "is nan, which is not a finite number (1 such row)."),
    "infinity as text": value("label", "Infinity", "is Infinity, which is not a finite number (1 such row)."),
    "a number as text": value("text1", 10**400, f"is not a text but 1{'0' * 37}...{'0' * 39} (1 such row)."),
    "NaN as text1": value("text1", float("nan"), "is not a text but nan (1 such row)."),
    "true as text": value("text1", True, "is not a text but True (1 such row)."),
    "an object as text": value("text2", {"a": "b"}, "is not a text but {'a': 'b'} (1 such row)."),
    "a list of a list": value("text2", [["b"]], "is not a text but ['b'] (1 such row)."),
}


def looks_like(column: str, role: str, data_format: str = "C") -> str:
    """Return the message about a column that is not used."""
    return (
        f"has the column {column}, which looks like {role} and is not used in format {data_format}. To leave it out "
        f"type 'data.train.columns={{{column}: null}}', to use it 'data.train.columns={{{role}: {column}}}'."
    )


def with_column(
    name: str, role: str, rows: list[dict[str, Any]] = POSITIVES, data_format: str = "C", **more: Any
) -> Case:
    """Return a case of rows with one column more."""
    return case("a.jsonl", lines([{**row, name: "x"} for row in rows]), looks_like(name, role, data_format), **more)


TRIPLES = [row | {"negative": "no"} for row in POSITIVES]
UNUSED = {
    "negative1": with_column("negative1", "negative_1", command=True),
    "negative-2 beside negative": with_column("negative-2", "negative_2", TRIPLES, "B"),
    "hard_negative": with_column("hard_negative", "negative"),
    "neg_3": with_column("neg_3", "negative_3"),
    "positive_2": with_column("positive_2", "positive"),
    "query": with_column("query", "text"),
    "Query": with_column("Query", "text"),
    "document": with_column("document", "positive"),
    "a label beside triples": with_column("label", "label", TRIPLES, "B"),
    "score beside label": with_column("score", "label", PAIRS, "A"),
    "sentence1 beside text1": with_column("sentence1", "text1", PAIRS, "A"),
    "query although C is asked for": with_column("query", "text", settings={"data_format.name": "C"}),
}


def pandas_json(orient: str) -> str:
    """Return what pandas writes."""
    import pandas as pd

    return str(pd.DataFrame(POSITIVES).to_json(orient=orient))


def whole_table(keys: str) -> str:
    return f"is one object that holds the whole table (its keys are {keys}): {WRITE_ROWS}"


def csv_of(changed: dict[int, str], count: int = 1000) -> str:
    """Return a CSV file of two columns, some rows written otherwise."""
    return "text,positive\n" + "".join(changed.get(n, f"a{n},b{n}") + "\n" for n in range(count))


def write_parquet(path: Path, **options: Any) -> None:
    parquet.write_table(arrow.table(COLUMNS), path, **options)


def twins(path: Path) -> None:
    """Write a parquet file with two columns of one name."""
    cells = arrow.array(COLUMNS["text"])
    parquet.write_table(arrow.table([cells, cells, cells], names=["text", "text", "positive"]), path)


def damage(path: Path, start: int, size: int = 8) -> None:
    """Overwrite some bytes of a file."""
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)


def damaged_page(path: Path, **options: Any) -> None:
    write_parquet(path, **options)
    damage(path, 60)


def damaged_data_set(start: int) -> Callable[[Path], None]:
    """Return a function that writes a data set with some bytes of its texts, or of where they begin, overwritten."""

    def write(path: Path) -> None:
        datasets.Dataset.from_dict(COLUMNS).save_to_disk(path)
        (file,) = path.glob("*.arrow")
        damage(file, file.read_bytes().index(b"a cat 0") + start)

    return write


def short_data_set(path: Path) -> None:
    datasets.Dataset.from_dict(COLUMNS).save_to_disk(path)
    (file,) = path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:700])


SHAPES = {
    "columns of pandas": case("a.json", pandas_json("columns"), whole_table("text, positive"), command=True),
    "split of pandas": case("a.json", pandas_json("split"), whole_table("columns, index, data")),
    "index of pandas": case(
        "a.json", pandas_json("index"), whole_table(", ".join(map(str, range(20))) + " and 20 others")
    ),
    "table of pandas": case("a.json", pandas_json("table"), whole_table("schema, data")),
    "values of pandas": case(
        "a.json",
        pandas_json("values"),
        'row 1 is not a JSON object with a name for each column: ["a cat 0", "the dog 0"]',
    ),
    "lists by column": case("a.json", json.dumps(COLUMNS), whole_table("text, positive")),
    "lists by column, in a line": case("a.jsonl", json.dumps(COLUMNS) + "\n", whole_table("text, positive")),
    "an object over several lines": case(
        "a.json",
        json.dumps(POSITIVES[0], indent=1),
        "has an object over several lines: write each row as one line, or all as one list.",
    ),
    "a list with a comma at its end": case("a.json", "[{},]", "line 1 is not valid JSON: Expecting value (column 5)."),
    "a list that does not end": case(
        "a.json", json.dumps(POSITIVES)[:-1], "line 1 is not valid JSON: Expecting ',' or ']' (column 1900)."
    ),
    "something behind a list": case("a.json", "[{}]\n[]", "line 2 is not valid JSON: Extra data (column 1)."),
    "a quote that is never closed": case(
        "a.csv", csv_of({5: '"a5,b5'}), f"row 6 (from line 7) {OPEN_QUOTE} (unexpected end of data).", command=True
    ),
    "a quote closed by the next": case(
        "a.csv", csv_of({5: '"a5,b5', 900: '"a900",b'}), f"row 6 (from line 7) {OPEN_QUOTE} (',' expected after '\"')."
    ),
    "a quote closed 993 rows later": case(
        "a.csv",
        csv_of({5: '"a5,b5', 998: 'a998",b998'}),
        "row 6 has a cell from line 7 to 1000 in which every line reads as a row: close its quotation mark, or double "
        "those that are part of a text.",
    ),
    "a quote that is not doubled": case(
        "a.csv", csv_of({5: '"a 5" wide",b5'}), f"row 6 (from line 7) {OPEN_QUOTE} (',' expected after '\"')."
    ),
    "a row too short": case(
        "a.csv", csv_of({5: "a5"}), "row 6 has 1 cells, but its header names 2 columns: text, positive."
    ),
    "two columns of one name in CSV": case(
        "a.csv", "text,text,positive\na,b,c\n", "has two columns named 'text': rename one of them."
    ),
    "two columns of one name in parquet": case("a.parquet", twins, "has two columns named 'text': rename one of them."),
    "a damaged page": case(
        "a.parquet",
        lambda path: damaged_page(path, write_page_checksum=True),
        "is damaged: could not verify page integrity, CRC checksum verification failed for page_ordinal 0. Copy or "
        "write it again.",
        command=True,
    ),
    "a damaged page without checksum": case(
        "a.parquet",
        lambda path: damaged_page(path, compression="none", use_dictionary=False),
        "is damaged: Invalid or truncated PLAIN-encoded BYTE_ARRAY data. Copy or write it again.",
    ),
    "a page that does not unpack": case(
        "a.parquet", damaged_page, "is damaged: Corrupt snappy compressed data. Copy or write it again."
    ),
    "half a parquet file": case(
        "a.parquet",
        lambda path: (write_parquet(path), path.write_bytes(path.read_bytes()[:-100])),
        "is not a readable parquet file: Parquet magic bytes not found in footer. Either the file is corrupted or this "
        "is not a parquet file.",
    ),
    "a data set's texts": case(
        "set",
        damaged_data_set(10),
        "is damaged: In column 0: Invalid: Invalid UTF8 sequence at string index 1. Copy or write it again.",
    ),
    "where a data set's texts begin": case(
        "set",
        damaged_data_set(-60),
        "is damaged: In column 0: Invalid: Offset invariant failure: non-monotonic offset...",
    ),
    "half a data set": case(
        "set",
        short_data_set,
        "is not a folder that datasets' save_to_disk wrote: Expected to be able to read...",
    ),
}


def bomb(start: bytes, repeated: bytes, megabytes: int = 1024) -> bytes:
    """Return a file that is a thousand times smaller than what it unpacks to."""
    return gzip.compress(start) + gzip.compress(repeated * (2**20 // len(repeated))) * megabytes


LONG = "longer than 33,554,432 characters: write one row a line, or raise data.limits.row_length=33554432."
MANY = "has more than 10,000 columns: is each row's content in its keys? data.limits.columns sets how many are read."
SMALL_LIMITS = {"data.limits.row_length": 1000, "data.limits.text_length": 100}
LONG_TEXT = "text has 101 characters: split the text, or raise data.limits.text_length=100 (1 such row)."
NO_FORMAT = "which match no format (A: text1, text2, label; B: text, positive, negative; C: text, positive)."
BOUNDS = {
    "a line of a gigabyte": case("a.jsonl.gz", bomb(b'{"text": "', b"a"), f"line 1 is {LONG}", command=True),
    "a line of spaces": case("a.jsonl.gz", bomb(b"", b" "), f"line 1 is {LONG}"),
    "a list of one endless text": case("a.json.gz", bomb(b'[{"text": "', b"a"), f"row 1 is {LONG}"),
    "a list of brackets": case("a.json.gz", bomb(b"[", b"["), "line 1 has brackets in brackets, too deep to be read."),
    "a cell of a gigabyte": case("a.csv.gz", bomb(b"text,positive\n", b"a"), f"line 2 is {LONG}"),
    "a header of a gigabyte": case("a.csv.gz", bomb(b"", b"a,"), f"line 1 is {LONG}"),
    "a TSV of a gigabyte": case("a.tsv.gz", bomb(b"text\tpositive\n", b"a\t"), f"line 2 is {LONG}"),
    "a text of 20 million characters": case(
        "a.jsonl",
        '{"text": "' + "a " * 10_000_000 + '", "positive": "b"}\n',
        "line 1: text has 20,000,000 characters: split the text, or raise data.limits.text_length=10000000 "
        "(1 such row).",
    ),
    "a million columns of CSV": case("a.csv", ",".join(map(str, range(10**6))) + "\n", MANY),
    "a million keys": case("a.jsonl", json.dumps(dict.fromkeys(map(str, range(200_000)), 1)) + "\n", MANY),
    "other keys in each row": case("a.jsonl", lines([{f"k{n}": 1} for n in range(20_000)]), MANY),
    "a quoted cell of many lines": case(
        "a.csv",
        'text,positive\n"' + "a\n" * 2000 + '",b\n',
        "row 1 is longer than 1,000 characters: write one row a line, or raise data.limits.row_length=1000.",
        settings=SMALL_LIMITS,
    ),
    "a text above its limit": case(
        "a.csv", f"text,positive\n{'a' * 101},b\n", f"row 1: {LONG_TEXT}", settings=SMALL_LIMITS
    ),
    "a text of a list above its limit": case(
        "a.jsonl", lines([{"text": ["a", "b" * 101], "positive": "b"}]), f"line 1: {LONG_TEXT}", settings=SMALL_LIMITS
    ),
    "a column with a long name": case("a.csv", "a" * 500_000 + "\nb\n", f"has the columns {'a' * 60}..., {NO_FORMAT}"),
    "a column with a name of two lines": case(
        "a.jsonl", '{"a\\nb\\ud800": 1}\n', rf"has the columns a\nb\ud800, {NO_FORMAT}"
    ),
}


KINDS: dict[str, dict[str, Case]] = {"values": VALUES, "unused columns": UNUSED, "shapes": SHAPES, "bounds": BOUNDS}
CASES = {f"{kind}: {name}": case for kind, cases in KINDS.items() for name, case in cases.items()}


def refusal(settings: dict[str, Any]) -> str:
    """Return the sentence with which a run's data are refused."""
    config = build_config(unflatten(settings), TrainConfig)
    with pytest.raises(DataError) as caught:
        load_data(config.data, config.data_format.name, SpyTokenizer(), BatchSpec(4))
    return str(caught.value)


def write(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", CASES)
def test_bad_data_is_refused_in_one_sentence(tmp_path, monkeypatch, name):
    file, content, text, more, _ = CASES[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / file, content)
    before = snapshot(tmp_path)
    with bounded():
        sentence = refusal({"data.train.name_or_path": file} | more)
    assert sentence.isprintable()
    assert len(sentence) < 1600
    expected = f"data.train: {file} {text}"
    assert sentence.startswith(expected.removesuffix("...")) if text.endswith("...") else sentence == expected
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "run"),
    [*((name, start_here) for name in CASES), *((name, start) for name, (*_, command) in CASES.items() if command)],
)
def test_the_command_says_the_same(tmp_path, name, run):
    file, content, text, settings, _ = CASES[name]
    write(tmp_path / file, content)
    before = snapshot(tmp_path)
    words = [f"{setting}={value}" for setting, value in settings.items()]
    done = run("train.py", "data=files", f"data.train.name_or_path={file}", *words, folder=tmp_path)
    expected = f"Error: data.train: {file} {text}"
    assert (
        done.stderr.startswith(expected.removesuffix("...")) if text.endswith("...") else done.stderr[:-1] == expected
    )
    assert (done.stderr.count("\n"), done.stdout, done.returncode) == (1, "", 1)
    assert snapshot(tmp_path) == before

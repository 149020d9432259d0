"""Every kind of file and folder gives the same rows, and says in one sentence what is wrong with it."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from angle.config import SourceConfig
from angle.data.purposes import RUN_TEST_SET, TASKS
from angle.data.sources import file_states, fingerprint_of_files, open_tables
from angle.errors import DataError

ROWS = [{"text": 'a, "b"', "positive": "é 漢"}, {"text": "NA", "positive": "null"}, {"text": "None", "positive": "3"}]
NUMBERED = list(enumerate(ROWS, 1))


def rows_of(path: object, *, streaming: bool = False, **settings: object) -> list[tuple[int, dict[str, object]]]:
    """Return the numbered rows of the only table of a source."""
    (table,) = open_tables(SourceConfig(str(path), **settings), "train", streaming=streaming)
    return [(number, dict(row)) for number, row in table.rows]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def complaint(path: object, purpose: str = "train", *, streaming: bool = False, **settings: object) -> str:
    """Return the error message for a source that cannot be read."""
    with pytest.raises(DataError) as caught:
        [list(table.rows) for table in open_tables(SourceConfig(path, **settings), purpose, streaming=streaming)]
    return str(caught.value)


JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXTS = {
    "list.json": json.dumps(ROWS, indent=2),
    "lines.json": JSONL,
    "a.jsonl": JSONL,
    "A.JSONL": JSONL,
    "blank.jsonl": "\n" + JSONL.replace("\n", "\n \n"),
    "last.jsonl": JSONL.rstrip("\n"),
    "windows.jsonl": JSONL.replace("\n", "\r\n"),
    "unicode.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "a.csv": 'text,positive\n"a, ""b""",é 漢\nNA,null\nNone,3\n',
    "windows.csv": 'text,positive\r\n"a, ""b""",é 漢\r\nNA,null\r\nNone,3\r\n',
    "blank.csv": 'text,positive\n"a, ""b""",é 漢\nNA,null\n\nNone,3\n\n',
    "a.tsv": 'text\tpositive\na, "b"\té 漢\nNA\tnull\nNone\t3\n',
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize("name", TEXTS)
def test_text_files(tmp_path, name, mark, ending):
    content = (mark + TEXTS[name]).encode()
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    assert [row for _, row in rows_of(path)] == ROWS
    (table,) = open_tables(SourceConfig(str(path)), "train", streaming=True)
    for _ in range(2):
        assert list(table.rows) == rows_of(path)


def many(name: str, end: bytes, rows: int = 20_000) -> bytes:
    """Return a text file of so many rows that no buffer holds it, and what comes behind them."""
    form = {"csv": "{0} {1},{1}\n", "tsv": "{0} {1}\t{1}\n"}.get(name.split(".")[1])
    head = "" if form is None else form.format("", "").replace(" ", "text").replace("\n", "positive\n")
    form = form or '{{"text": "{0} {1}", "positive": "{1}"}}\n'
    return (head + "".join(form.format(n, n * n % 999_983) for n in range(rows))).encode() + end


BROKEN_ENDS = {
    "a.jsonl": b'{"text": x}\n',
    "a.json": b"[1]\n",
    "a.csv": b"1,2,3\n",
    "a.tsv": b"1\n",
    "latin.csv": b"n\xe9,b\n",
    "latin.jsonl": b'{"text": "n\xe9"}\n',
    "a.jsonl.gz": b"{}{}\n",
    "torn.csv.gz": b"",
}


@pytest.mark.parametrize("name", BROKEN_ENDS)
def test_a_streamed_file_is_read_as_far_as_requested(tmp_path, name):
    content = many(name, BROKEN_ENDS[name])
    if name.endswith(".gz"):
        content = gzip.compress(content)[: -20 if name.startswith("torn") else None]
    (tmp_path / name).write_bytes(content)
    (table,) = open_tables(SourceConfig(str(tmp_path / name), columns={"t": "text"}), "train", streaming=True)
    assert table.columns == ("t", "positive")
    for _ in range(2):
        assert [(n, dict(row)) for n, row in islice(table.rows, 3)] == [
            (n + 1, {"t": f"{n} {n * n}", "positive": f"{n * n}"}) for n in range(3)
        ]
    with pytest.raises(DataError) as caught:
        list(table.rows)
    assert str(caught.value) == complaint(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv.gz"])
def test_a_streamed_file_is_never_completely_in_memory(tmp_path, name):
    content = many(name, b"", rows=60_000)  # several times what Python buffers of a .gz file
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    tracemalloc.start()
    (table,) = open_tables(SourceConfig(str(tmp_path / name)), "train", streaming=True)
    assert sum(1 for _ in table.rows) == 60_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(content) / 2


def test_row_and_line_numbers(tmp_path):
    for name in ("a.jsonl", "blank.jsonl", "a.csv", "list.json"):
        (tmp_path / name).write_text(TEXTS[name])
    assert [n for n, _ in rows_of(tmp_path / "a.jsonl")] == [1, 2, 3]
    assert [n for n, _ in rows_of(tmp_path / "blank.jsonl")] == [2, 4, 6]
    assert [n for n, _ in rows_of(tmp_path / "a.csv")] == [1, 2, 3]
    unit = {path.name: open_tables(SourceConfig(str(path)), "train")[0].unit for path in tmp_path.iterdir()}
    assert unit == {"a.jsonl": "line", "blank.jsonl": "line", "a.csv": "row", "list.json": "row"}


def test_cells_of_csv_and_tsv_stay_as_written(tmp_path):
    (tmp_path / "a.csv").write_text('text,positive\n"two\nlines", NA \n007,1e3\n')
    (tmp_path / "a.tsv").write_text('text\tpositive\n"open\tit\'s 5" wide\n')
    assert rows_of(tmp_path / "a.csv") == [
        (1, {"text": "two\nlines", "positive": " NA "}),
        (2, {"text": "007", "positive": "1e3"}),
    ]
    assert rows_of(tmp_path / "a.tsv") == [(1, {"text": '"open', "positive": "it's 5\" wide"})]


def test_a_long_text_fits_into_a_csv_cell(tmp_path):
    (tmp_path / "a.csv").write_text(f"text,positive\n{'a' * 200_000},b\n")
    assert len(rows_of(tmp_path / "a.csv")[0][1]["text"]) == 200_000


def test_parquet(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    assert rows_of(tmp_path / "a.parquet") == NUMBERED


def test_folders_of_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows, first_row = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "validation": first_row}).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "one") == NUMBERED == rows_of(tmp_path / "two")
    assert rows_of(tmp_path / "two", split="validation") == NUMBERED[:1]
    (valid,) = open_tables(SourceConfig(str(tmp_path / "two")), "valid_sts")
    assert list(valid.rows) == NUMBERED[:1]
    assert complaint(str(tmp_path / "two"), "test") == (
        f"data.test: {tmp_path / 'two'} has no split test; it has train, validation: type data.test.split=train"
    )
    assert complaint(str(tmp_path / "two"), TASKS) == (
        f"tasks: {tmp_path / 'two'} has no split test; it has train, validation: type tasks=[{tmp_path / 'two/train'}]"
    )
    assert rows_of(tmp_path / "two/train") == NUMBERED  # what that message says to type can be read


@pytest.fixture
def all_cell_types():
    """A data set, over several batches, with every type of cell that is stored differently from how it is given."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "text": f"t{n}",
            "positive": [f"p{n}.{k}" for k in range(n % 3)],
            "label": n % 2,
            "score": None if n % 5 == 0 else n,
            "more": {"id": n, "tags": [{"name": "x"}] * (n % 2)},
        }
        for n in range(2500)
    ]
    data = datasets.Dataset.from_list(rows)
    return data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data,
        lambda data: data.with_format(None, columns=["score"]),
        lambda data: data.with_format("numpy", columns=["label", "score"]),
        lambda data: data.shuffle(seed=1),
    ],
    ids=["all", "some columns", "numpy", "shuffled"],
)
def test_rows_of_a_data_set_are_its_own_whatever_format_it_was_saved_with(tmp_path, all_cell_types, change):
    change(all_cell_types).save_to_disk(tmp_path / "saved")
    rows = rows_of(tmp_path / "saved")
    assert [n for n, _ in rows] == list(range(1, 2501))
    roles = ["text", "positive", "label"]
    expected = change(all_cell_types).with_format(None)
    assert [repr(row) for _, row in rows] == [repr({role: row[role] for role in roles}) for row in expected]


def test_rows_of_a_data_set_are_not_decoded_one_by_one(tmp_path, all_cell_types, monkeypatch):
    import datasets

    all_cell_types.save_to_disk(tmp_path / "saved")
    monkeypatch.delattr(datasets.Dataset, "__iter__")
    monkeypatch.delattr(datasets.Dataset, "__getitem__")
    assert len(rows_of(tmp_path / "saved")) == 2500


def test_a_list_of_sources_keeps_its_order(tmp_path):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_text(TEXTS[name])
    tables = open_tables(SourceConfig([str(tmp_path / "a.jsonl"), str(tmp_path / "a.csv"), "sample"]), "train", "C")
    assert [Path(table.name).name for table in tables] == ["a.jsonl", "a.csv", "sample (train)"]
    assert [table.columns for table in tables] == [("text", "positive")] * 3


@pytest.mark.parametrize(("data_format", "columns"), [("auto", 3), ("A", 3), ("B", 3), ("C", 2)])
def test_the_sample_has_every_format_and_split(data_format, columns):
    counts = []
    for purpose in ("train", "valid", "test"):
        (table,) = open_tables(SourceConfig("sample"), purpose, data_format)
        assert len(table.columns) == columns
        counts.append(len(list(table.rows)))
    assert min(counts) > 0
    assert complaint("sample", split="dev") == (
        "The built-in sample has no split dev: choose one of train, validation, test."
    )


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"text1": "text", "text2": "positive"}, {"text1": "x", "text2": "y", "label": 1}),
        ({"text": "positive", "positive": "text"}, {"positive": "x", "text": "y", "label": 1}),
        ({"text": "positive"}, {"text": "y", "label": 1}),
        ({"text": "text"}, {"text": "x", "positive": "y", "label": 1}),
    ],
    ids=["rename", "swap", "replace", "same"],
)
def test_renaming(tmp_path, columns, row):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "positive": "y", "label": 1}\n')
    source = SourceConfig(str(tmp_path / "a.jsonl"), columns=columns)
    (table,) = open_tables(source, "train")
    assert set(table.columns) == set(row)
    assert [dict(renamed) for _, renamed in table.rows] == [row]


def test_renaming_a_column_that_is_not_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x", "b": "y"}\n')
    assert complaint(str(path), columns={"text1": "a", "text2": "c"}) == (
        f"data.train.columns names c, but {path} has: a, b."
    )


NO_JSON = "is not valid JSON: Expecting property name enclosed in double quotes"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.jsonl", "", "is empty."),
        ("a.jsonl", "\n \n", "is empty: it has no row."),
        ("a.json", "[]", "is empty: it has no row."),
        ("a.csv", "text,positive\n", "is empty: it has no row."),
        ("a.jsonl", '{"a": 1}\n\n{"b": \n', "line 3 is not valid JSON: Expecting value (column 7)."),
        ("a.json", "[\n{},\n{x}]", f"line 3 {NO_JSON} (column 2)."),
        ("a.jsonl", "{}\n[1]\n", "line 2 is not a JSON object with a name for each column: [1]"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "row 2 has 3 cells, but its header names 2 columns: a, b."),
        ("a.parquet", "text" * 9, "is not a readable parquet file: Parquet magic bytes not found in footer."),
        (
            "a.txt",
            "text",
            "cannot be read: a file must end in .json, .jsonl, .csv, .tsv, .parquet; a text file may be compressed "
            "(.gz).",
        ),
    ],
    ids=lambda value: value if "." not in value[1:] or value.startswith("a.") else "",
)
def test_files_that_cannot_be_read(tmp_path, name, content, text):
    path = tmp_path / name
    path.write_text(content)
    assert complaint(str(path)).startswith(f"data.train: {path} {text}")
    assert complaint(str(path), streaming=True) == complaint(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,positive\nn\xe9,b\n".encode("latin-1")),
        ("a.jsonl", b'{"text": "n\xe9"}\n'),
        ("a.jsonl.gz", b'{"text": "a"}\n'),
        ("a.csv.gz", gzip.compress(b"text,positive\na,b\n" * 99)[:40]),
    ],
    ids=["latin-1 csv", "latin-1 jsonl", "no gzip", "half a gzip"],
)
def test_messages_name_files_in_another_encoding(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    text = complaint(str(tmp_path / name))
    assert text == complaint(str(tmp_path / name), streaming=True)
    assert text.startswith(f"data.train: {tmp_path / name} ")
    assert "\n" not in text


def test_a_repeated_column_name_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,positive\na,b,c\n")
    assert "text" in complaint(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/no/such/folder", "~/no/such.csv"])
def test_paths_that_do_not_exist(name):
    path = Path(name).expanduser()
    assert complaint(name) == f"data.train: {path} does not exist; the folder you are in is {Path.cwd()}."


def test_a_folder_that_is_no_data_set(tmp_path):
    assert complaint(str(tmp_path)) == (
        f"data.train: {tmp_path} cannot be read as a data set: The directory at {tmp_path} doesn't contain any data "
        f"files; give a list of the files that are meant, or a folder that datasets' save_to_disk wrote."
    )


@pytest.fixture
def downloaded(tmp_path):
    """A data set as it is on the hub, with a subset."""
    folder = tmp_path / "downloaded"
    for split, rows in (("train", ROWS), ("validation", ROWS[:1])):
        write(folder / "en" / f"{split}.jsonl", rows)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_dir: en\n---\n")
    return folder


def test_a_folder_as_it_is_on_the_hub(downloaded):
    source = SourceConfig(str(downloaded), subset="en")
    (train,), (valid,) = open_tables(source, "train"), open_tables(source, "valid")
    assert (train.name, list(train.rows)) == (str(downloaded / "en/train.jsonl"), NUMBERED)
    assert list(valid.rows) == NUMBERED[:1]
    assert complaint(str(downloaded), "test") == (
        f"data.test: {downloaded} has no split test; it has train, validation: type data.test.split=train"
    )
    with pytest.raises(DataError, match="BuilderConfig 'de' not found"):
        open_tables(SourceConfig(str(downloaded), subset="de"), "train")


def test_a_folder_names_no_files_outside_of_it(downloaded):
    write(downloaded.parent / "other.jsonl", ROWS)
    for place in ("../other.jsonl", str(downloaded.parent / "other.jsonl")):
        (downloaded / "README.md").write_text(f"---\nconfigs:\n- config_name: en\n  data_files: {place}\n---\n")
        assert complaint(str(downloaded)) == (
            f"data.train: {downloaded} names {downloaded.parent / 'other.jsonl'}, which is not in it: give a list of "
            f"the files that are meant."
        )


def test_a_folder_s_files_are_watched(downloaded):
    source = SourceConfig(str(downloaded), subset="en")
    states, fingerprint = file_states(source), fingerprint_of_files(source)
    assert len(states) == 2
    write(downloaded / "en/train.jsonl", ROWS[::-1])
    assert file_states(source) != states
    assert fingerprint_of_files(source) != fingerprint
    states, fingerprint = file_states(source), fingerprint_of_files(source)
    (downloaded / "README.md").open("a").write("Words about it.\n")
    assert (file_states(source), fingerprint_of_files(source)) == (states, fingerprint)


def test_files_of_a_folder_are_splits_by_their_names(tmp_path):
    for name, rows in (("train-1", ROWS[:2]), ("train-2", ROWS[2:]), ("test", ROWS[:1])):
        write(tmp_path / f"{name}.jsonl", rows)
    train, test = (open_tables(SourceConfig(str(tmp_path)), purpose) for purpose in ("train", "test"))
    assert [row for table in train for _, row in table.rows] == ROWS
    assert [row for table in test for _, row in table.rows] == ROWS[:1]


def test_a_folder_of_files_of_several_kinds_is_told_as_a_list(tmp_path):
    for name in ("b.csv", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert complaint(str(tmp_path)) == (
        f"data.train: {tmp_path} is a folder of files: give a list of the paths that are meant (a.jsonl, b.csv)."
    )


def test_a_hub_name_that_cannot_be_reached():
    pytest.importorskip("datasets")
    assert complaint("nobody/nothing", "valid", subset="x", split="dev") == (
        "data.valid: nobody/nothing (subset x, split dev) could not be loaded from the hub: "
        "Couldn't reach 'nobody/nothing' on the Hub (OfflineModeIsEnabled). Check the name, the subset and the split, "
        "or give a file."
    )
    assert complaint("nobody/nothing", TASKS) == (
        "tasks: nobody/nothing (subset none, split test) could not be loaded from the hub: Couldn't reach "
        "'nobody/nothing' on the Hub (OfflineModeIsEnabled). Check the name, or give a file."
    )


@pytest.mark.parametrize(("purpose", "start"), [("valid_sts", "data.valid_sts"), (TASKS, "tasks"), (RUN_TEST_SET,) * 2])
def test_messages_name_settings_that_exist(tmp_path, purpose, start):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x", "b": "y"}\n{\n')
    assert complaint(str(path), purpose).startswith(f"{start}: {path} line 2 is not valid JSON: ")
    assert complaint(str(tmp_path / "b.csv"), purpose).startswith(f"{start}: {tmp_path / 'b.csv'} does not exist")
    path.write_text('{"a": "x", "b": "y"}\n')
    columns = "data.valid_sts.columns" if purpose == "valid_sts" else "columns"
    assert complaint(str(path), purpose, columns={"text1": "c"}) == f"{columns} names c, but {path} has: a, b."


def test_a_hub_client_that_fails_without_a_message(monkeypatch):
    def fail(*_args, **_kwargs):
        raise ValueError

    monkeypatch.setattr("datasets.load_dataset", fail)
    assert "could not be loaded from the hub: ValueError. Check the name" in complaint("org/name")


@pytest.mark.parametrize("enabled", [True, False])
def test_progress_bars_are_as_before_once_hub_data_is_loaded(monkeypatch, enabled):
    import datasets

    bars = []

    def load_dataset(*_args, **_kwargs):
        bars.append(datasets.is_progress_bar_enabled())
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (datasets.enable_progress_bars if enabled else datasets.disable_progress_bars)()
    try:
        assert rows_of("org/name") == NUMBERED
        assert (bars, datasets.is_progress_bar_enabled()) == ([False], enabled)
    finally:
        datasets.enable_progress_bars()


@pytest.mark.parametrize("feature", ["Image", "Audio"])
def test_columns_that_are_not_used_are_not_decoded(tmp_path, feature):
    datasets = pytest.importorskip("datasets")
    rows = [row | {"media": {"bytes": b"neither image nor sound", "path": None}} for row in ROWS]
    data = datasets.Dataset.from_list(rows).cast_column("media", getattr(datasets, feature)())
    data.save_to_disk(tmp_path / "saved")
    assert rows_of(tmp_path / "saved") == NUMBERED
    data.to_parquet(tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == NUMBERED


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_are_not_used_are_not_kept(tmp_path, name, streaming):
    import pandas as pd

    table = pd.DataFrame([row | {"id": n, "vector": "0.1" * 9} for n, row in NUMBERED])
    writers = {
        ".jsonl": lambda path: table.to_json(path, orient="records", lines=True),
        ".json": lambda path: table.to_json(path, orient="records"),
        ".csv": lambda path: table.to_csv(path, index=False),
        ".tsv": lambda path: table.to_csv(path, index=False, sep="\t", quoting=3),
        ".parquet": table.to_parquet,
    }
    path = tmp_path / name
    writers[path.suffix](path)
    (read,) = open_tables(SourceConfig(str(path)), "train", streaming=streaming)
    assert [(number, dict(row)) for number, row in read.rows] == NUMBERED
    assert read.columns == ("text", "positive", "id", "vector")
    (read,) = open_tables(SourceConfig(str(path)), "train", template_columns=("vector",), streaming=streaming)
    assert [set(row) for _, row in read.rows] == [{"text", "positive", "vector"}] * 3
    renamed = SourceConfig(str(path), columns={"label": "id", "vector": None})
    (read,) = open_tables(renamed, "train", streaming=streaming)
    assert set(read.columns) == {"text", "positive", "label"}
    assert [set(row) for _, row in read.rows] == [{"text", "positive", "label"}] * 3


def test_columns_to_leave_out_must_be_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(JSONL)
    assert complaint(str(path), columns={"negative": None}) == (
        f"data.train.columns names negative, but {path} has: text, positive."
    )
    assert complaint(str(path), columns={"text1": "text", "text2": "text"}) == (
        "data.train.columns gives text several names: a column can have one."
    )


def test_a_list_is_read_piece_by_piece(tmp_path, monkeypatch):
    from angle.data import text_files

    path = tmp_path / "a.json"
    rows = [{"text": f"{n}" * (n % 50 + 1), "positive": "é 漢"} for n in range(300)]
    for size in (1, 7, 64, 2**20):
        monkeypatch.setattr(text_files, "LIST_CHUNK", size)
        for content in (json.dumps(rows), json.dumps(rows, indent=2), json.dumps(rows, indent=2) + " \n"):
            path.write_text(content)
            for streaming in (False, True):
                assert [row for _, row in rows_of(path, streaming=streaming)] == rows
        path.write_text(json.dumps(rows, indent=1)[:-9])
        assert "is not valid JSON" in complaint(str(path))


def test_lines_of_prose_in_a_cell_are_no_rows(tmp_path):
    verse = (
        "Shall I compare thee\nto a summer's day?\nThou art more lovely,\nand more temperate:\nRough winds\ndo shake"
    )
    (tmp_path / "a.csv").write_text(f'text,positive\n"{verse}",b\n')
    assert rows_of(tmp_path / "a.csv") == [(1, {"text": verse, "positive": "b"})]


def test_a_csv_file_may_have_tsv_in_its_name(tmp_path):
    (tmp_path / "from.tsv.csv").write_text("text,positive\na,b\n")
    assert rows_of(tmp_path / "from.tsv.csv") == [(1, {"text": "a", "positive": "b"})]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(many("a.jsonl", b""))
    (table,) = open_tables(SourceConfig(str(path)), "train", streaming=True)
    rows = iter(table.rows)
    next(rows)
    with path.open("a") as file:
        file.write('{"text": "a", "positive": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl was written to while it was read: start again once it is complete"):
        list(rows)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_the_fingerprint_of_a_streamed_file_sees_more_than_its_ends(tmp_path, place):
    path = tmp_path / "a.jsonl"
    content = bytearray(many("a.jsonl", b"", rows=200_000))
    path.write_bytes(content)
    before = fingerprint_of_files(SourceConfig(str(path)))
    position = int(len(content) * place)
    content[position : position + 2**19] = content[position : position + 2**19][::-1]
    path.write_bytes(content)
    assert fingerprint_of_files(SourceConfig(str(path))) != before

"""Folders of files, such as a downloaded data set of the hub: which of the files are a split."""

from __future__ import annotations

import os
from pathlib import Path

from angle.data.arrow_files import missing_split
from angle.data.table import Request
from angle.errors import first_line, listed
from angle.quiet import quiet_datasets

#: What is a table if it stands in a folder; a .json file there may be about other files.
TABLE_ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")
#: One of these is in every folder that `save_to_disk` wrote.
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any((folder / name).exists() for name in SAVED)


def split_files(folder: Path, subset: str | None, split: str, request: Request) -> list[Path]:
    """Return the files of a split, as the library datasets finds them by a folder's README or their names.

    Raises:
        DataError: there are none, or files of other kinds that the library would leave out.

    """
    import datasets

    try:
        with quiet_datasets():
            config = datasets.load_dataset_builder(str(folder.absolute()), subset).config
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # the last for what is no path but an address
        advice = "give a list of the files that are meant, or a folder that datasets' save_to_disk wrote"
        raise request.error(folder, f"cannot be read as a data set: {first_line(error)}; {advice}.") from None
    splits: dict[str, list[Path]] = {}
    for name, files in (config.data_files or {}).items():
        paths = [Path(os.path.normpath(file)) for file in files]
        outside = next((path for path in paths if not path.is_relative_to(folder.absolute())), None)
        if outside is not None:
            raise request.error(
                folder, f"names {outside}, which is not in it: give a list of the files that are meant."
            )
        splits[str(name)] = [folder / path.relative_to(folder.absolute()) for path in paths]
    tables = sorted(file for file in folder.iterdir() if is_table(file))
    if config.name == "default" and not {file for files in splits.values() for file in files}.issuperset(tables):
        names = listed([file.name for file in tables])
        raise request.error(folder, f"is a folder of files: give a list of the paths that are meant ({names}).")
    if split not in splits:
        raise missing_split(folder, split, list(splits), next(iter(splits.values()))[0], request)
    return splits[split]


def is_table(path: Path) -> bool:
    """Return whether a file in a folder is a table."""
    return path.is_file() and path.name.lower().removesuffix(".gz").endswith(TABLE_ENDINGS)

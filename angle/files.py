"""Files and folders that survive a crash or a full disk, locks, and how to write paths."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from angle.errors import ConfigError, DiskError

#: How the name of a file or a folder ends, after a dot in front, while it is being written.
NEW_SUFFIX = ".new"
#: In a folder that one process at a time works in.
LOCK_FILE = ".lock"
#: In a folder of a run's: the checksums of its files.
MANIFEST = "manifest.json"
#: What a function that writes a folder returns.
Result = TypeVar("Result")


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, finds either the old file or the new one; a failure leaves the old."""
    data = content.encode() if isinstance(content, str) else content
    replace_file(path, lambda temp_path: temp_path.write_bytes(data))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Do what `write_durably` does with a file that `write` puts at the path that it is given."""
    temp_path = _temp_path(path)
    try:
        write(temp_path)
        sync(temp_path)
        os.replace(temp_path, path)
    except BaseException:
        temp_path.unlink(missing_ok=True)
        raise
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, so that a power cut does not lose them."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def replace_folder(target: Path, write: Callable[[Path], Result]) -> Result:
    """Write a folder so that a crash at any moment leaves the old one or the new one, complete.

    If the crash comes between the two renames, the old one is at another path: `readable_folder` finds it there, and
    `restore_folder` moves it back.

    Args:
        target: the folder to create or replace.
        write: creates the folder whose path it is given, with its contents; if it fails, the old folder stays.

    Returns:
        What `write` returns.

    """
    restore_folder(target)
    temp_path, backup_path = _temp_path(target), _backup_path(target)
    make_folder(target.parent)
    try:
        result = write(temp_path)
        sync_tree(temp_path)
        if target.exists():
            target.rename(backup_path)
        temp_path.rename(target)
    except BaseException:
        restore_folder(target)
        raise
    sync(target.parent)
    remove(backup_path)
    return result


def restore_folder(target: Path) -> None:
    """Clean up after a crash in `replace_folder`: put the old folder back unless the new one is in place."""
    remove(_temp_path(target))
    backup_path = _backup_path(target)
    if target.exists():
        remove(backup_path)
    elif backup_path.exists():
        backup_path.rename(target)


def readable_folder(target: Path) -> Path:
    """Return the folder, or its old version where a crash in `replace_folder` left only that."""
    backup_path = _backup_path(target)
    return backup_path if backup_path.exists() and not target.exists() else target


def is_scratch(path: Path) -> bool:
    """Return whether a file or folder is what a crash left of one that was being written."""
    return path.name.startswith(".") and path.suffix == NEW_SUFFIX


def remove(path: Path) -> None:
    """Remove a folder with its contents, or a file, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _temp_path(target: Path) -> Path:
    return target.with_name(f".{target.name}{NEW_SUFFIX}")


def _backup_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder, at any depth, is on the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk; Windows offers this for neither."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network disks sync no folders
            raise
    finally:
        os.close(descriptor)


def disk_problem(error: BaseException | None) -> str | None:
    """Return why nothing can be written if a disk, or a quota, is full; libraries hide that in errors of their own."""
    if error is None:
        return None
    hidden = re.search(r"\(os error (\d+)\)", str(error))  # as Rust writes it
    number = error.errno if isinstance(error, OSError) else int(hidden[1]) if hidden else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return os.strerror(number)
    return disk_problem(error.__cause__ or error.__context__)


@contextmanager
def explained_disk_errors(place: object, hint: str) -> Iterator[None]:
    """Turn any error of a full disk into one sentence.

    Args:
        place: what was being written.
        hint: what to do once there is space again.

    Raises:
        DiskError: the disk is full.

    """
    try:
        yield
    except Exception as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        raise DiskError(
            f"{place} cannot be written to ({problem}). The existing files are intact: free disk space, then {hint}"
        ) from error


def try_lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed or the process dies; return False if another process holds the lock."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def locked_folder(folder: Path, setting: str, use: str) -> Iterator[None]:
    """Make a folder if there is none, and keep others out of it; a process that dies leaves no lock.

    Args:
        folder: the folder.
        setting: names it in messages.
        use: who is kept out, and what it does "there", such as "another process trains".

    Raises:
        ConfigError: it cannot be written to, or is in use.

    """
    try:
        make_folder(folder)
        lock_file = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigError(f"{setting}={folder} cannot be written to ({error.strerror}): give another folder.") from None
    with lock_file:
        if not try_lock(lock_file):
            raise ConfigError(f"{setting}={folder} is in use: {use} there. Wait for it, or give a new folder.")
        yield


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, notes: dict[str, Any]) -> None:
    """Write the checksums of all files in a folder into it, and `notes`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {file.relative_to(folder).as_posix(): checksum(file) for file in files}
    content = json.dumps({"files": checksums, "notes": notes}, indent=2)
    (folder / MANIFEST).write_text(content + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the notes in a folder's manifest; None unless all files listed there exist and match their checksums."""
    return None if changed_file(folder) else dict(_manifest(folder)["notes"])


def changed_file(folder: Path) -> str | None:
    """Return the name of a file that does not match its checksum in the folder's manifest; None if all do.

    It is the manifest's own if that is missing or none.
    """
    try:
        checksums = _manifest(folder)["files"]
    except (OSError, ValueError, TypeError, KeyError):
        return MANIFEST
    for name, expected in checksums.items():
        try:
            if checksum(folder / name) != expected:
                return str(name)
        except OSError:
            return str(name)
    return None if checksums else MANIFEST


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {key: dict(content[key]) for key in ("files", "notes")}


def relative_to_cwd(path: Path) -> str:
    """Return a path as short as possible for typing in the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)

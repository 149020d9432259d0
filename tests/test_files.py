"""Durable folders: complete after a crash at any moment, and on the disk before they are in place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, snapshot

from angle import files
from angle.files import readable_folder, replace_folder, restore_folder

#: Replaces a folder in one forked process after another, each killed at a later change to the file system.
KILLER = """
import os, sys
from pathlib import Path
from angle.files import replace_folder

CHANGES = {"os.mkdir", "os.rename", "os.rmdir", "os.remove", "open"}

def write(folder):
    (folder / "pooling").mkdir(parents=True)
    (folder / "weights").write_text("new")
    (folder / "pooling" / "config").write_text("new")

def replace_until(target, last):
    def kill(event, arguments, changes=[0]):
        changes[0] += event in CHANGES
        if changes[0] > last:
            os._exit(9)
    sys.addaudithook(kill)
    replace_folder(target, write)
    os._exit(0)

for last in range(100):
    target = Path(sys.argv[1], str(last), "best")
    (target / "pooling").mkdir(parents=True)
    (target / "weights").write_text("old")
    (target / "pooling" / "config").write_text("old")
    child = os.fork()
    if not child:
        replace_until(target, last)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""
OLD, NEW = ({"pooling": None, "pooling/config": text, "weights": text} for text in (b"old", b"new"))


def write(folder: Path) -> None:
    """Write a folder with a file in a sub-folder."""
    (folder / "pooling").mkdir(parents=True)
    (folder / "weights").write_text("new")
    (folder / "pooling" / "config").write_text("new")


def test_a_process_killed_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLER, str(tmp_path)], check=True, cwd=REPO)
    *killed, finished = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(killed) > 10
    states = []
    for parent in killed:
        target = parent / "best"
        states.append((target.exists(), snapshot(readable_folder(target)) == NEW))
        assert snapshot(readable_folder(target)) in (OLD, NEW)
        restore_folder(target)
        assert snapshot(target) in (OLD, NEW)
        assert [path.name for path in parent.iterdir()] == ["best"]
    assert set(states) == {(True, False), (False, False), (True, True)}  # among them, between the two renames
    assert snapshot(finished) == {"best": None} | {f"best/{name}": content for name, content in NEW.items()}


def test_a_replacement_after_a_crash_starts_anew(tmp_path: Path) -> None:
    write(tmp_path / ".best.old")
    write(tmp_path / ".best.new")
    replace_folder(tmp_path / "best", write)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert snapshot(tmp_path / "best") == NEW


def test_a_failed_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "best"
    write(target)
    before, rename = snapshot(tmp_path), Path.rename

    def fail_second(path: Path, other: Path) -> None:
        if path.name == ".best.new":
            raise OSError("no space left")
        rename(path, other)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="no space left"):
        replace_folder(target, lambda folder: folder.mkdir())
    assert snapshot(tmp_path) == before


def test_files_are_synced_before_the_folder_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = files.sync, Path.rename

    def record_sync(path: Path) -> None:
        events.append(f"sync {path.relative_to(tmp_path)}")
        sync(path)

    def record_rename(path: Path, other: Path) -> None:
        events.append(f"rename {path.name} {other.name}")
        rename(path, other)

    monkeypatch.setattr(files, "sync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    replace_folder(tmp_path / "best", write)
    inside = {f"sync .best.new{name}" for name in ("", "/weights", "/pooling", "/pooling/config")}
    assert (set(events[:4]), events[4:]) == (inside, ["rename .best.new best", "sync ."])


def test_a_lock_where_there_is_no_fcntl(tmp_path: Path) -> None:
    """As on Windows: the package can be imported, and files are locked by the system's own function."""
    program = """
import sys, types
sys.modules["fcntl"] = None
import angle.api.angle
from angle.files import try_lock

locked = set()
def locking(descriptor, mode, size):
    if (mode, size) in locked:
        raise OSError("locked")
    locked.add((mode, size))

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
sys.platform = "win32"
with open(sys.argv[1], "w") as file:
    assert try_lock(file) and locked == {(2, 1)}
    assert not try_lock(file)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "lock")], check=True, cwd=REPO, env=os.environ)

"""What a crash leaves of a run: the disk after every change that a run makes to it, and whether the run survives that.

`record` runs a command once. After each change of its folder (a file opened for writing, written out, renamed or
removed, a folder made or removed, a sync) it keeps what the disk would hold if the computer stopped there:

- killed: everything that has been written, as after SIGKILL;
- emptied: names are on the disk, contents that were not synced are not, as after a power cut;
- torn: the same, but of what was not synced the first half is there, and zeros up to the file's size;
- synced: nothing but what was synced, names too, as after a power cut on a disk that writes them in no order.

`resume` types the same command again on such a disk. It must end as the run that nothing stopped, bit for bit and
without anything left over, or with one sentence that leaves all as it was.

The test suite tries a few of the disks; `python tests/crashes.py` tries all of them, for several kinds of runs and for
embedding, and `python tests/crashes.py 1/4 plain` a quarter of those of one kind of run.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import runpy
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fork_server
from conftest import repeatable_metrics

REPO = Path(__file__).resolve().parent.parent
KINDS = ("killed", "emptied", "torn", "synced")
#: A file's content, or None for a folder, by path.
Disk = dict[str, bytes | None]
#: Changes that Python announces; libraries that write by themselves are seen when the next one comes.
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
#: Written without being synced, and read by nobody.
UNCHECKED = ("train.log", ".lock")
#: Of embeddings.json: what is of the command that finished.
UNCHECKED_KEYS = ("encoded", "seconds", "texts_per_second", "finished")
EMPTY = b""
#: The kind of run that is itself what goes on after a crash.
RESUMED = "resumed"
#: What every run needs.
LIBRARIES = (*fork_server.LIBRARIES, "angle.training.loop", "angle.cli.app")


@dataclass
class Recorder:
    """Watches a folder while a command runs in this process, and keeps the disks that crashes would leave."""

    folder: Path
    changes: int = 0
    found: list[tuple[str, int, Disk]] = field(default_factory=list)
    """The kind of a crash, the change after which it came, what it left: each different disk once."""
    synced_files: dict[int, bytes] = field(default_factory=dict)
    """Contents by file. (Files and folders are numbered by `_number`, inodes are used again.)"""
    synced_names: dict[int, dict[str, int]] = field(default_factory=dict)
    """By folder, what is in it."""
    numbers: dict[int, int] = field(default_factory=dict)
    """By inode, the number of what has that inode now."""
    count: int = 0
    seen: set[frozenset[tuple[str, int]]] = field(default_factory=set)
    read: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    """Contents by inode, size and time of change; equal ones are one object."""
    torn: dict[tuple[int, int], bytes] = field(default_factory=dict)
    interned: dict[bytes, bytes] = field(default_factory=dict)
    busy: bool = False

    def watch(self) -> None:
        """Start: whatever is in the folder now counts as synced."""
        for path in (self.folder, *self.folder.rglob("*")):
            self._note_sync(path)
        sync = os.fsync

        def fsync(descriptor: int) -> None:
            sync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if self._is_inside(path):
                self.after_change()  # of which nothing was synced yet
                self._note_sync(path)
                self.after_change()

        os.fsync = fsync
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy or event not in CHANGES or threading.current_thread() is not threading.main_thread():
            return  # other threads write nothing in the folder, and would look at it while the main one does
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and (self._is_inside(Path(path)) or not os.path.isabs(path)):
            self.after_change()  # hooks are called before, so this is what the change before has left

    def _is_inside(self, path: Path) -> bool:
        return path == self.folder or self.folder in path.absolute().parents

    def _note_sync(self, path: Path) -> None:
        if path.is_dir():
            self.synced_names[self._number(path)] = {entry.name: self._number(entry) for entry in path.iterdir()}
        else:
            self.synced_files[self._number(path)] = self._read(path)

    def _number(self, path: Path) -> int:
        """Return the number of a file or folder, which stays the same when it is renamed."""
        inode = path.stat().st_ino
        if inode not in self.numbers:
            self.count += 1
            self.numbers[inode] = self.count
        return self.numbers[inode]

    def _forget_all_but(self, inodes: set[int]) -> None:
        """Give up the inodes of what was removed. It may still be on the disk, by a name whose change is not synced."""
        for inode in self.numbers.keys() - inodes:
            del self.numbers[inode]

    def _read(self, path: Path) -> bytes:
        """Return a file's content, which is mostly known already."""
        status = path.stat()
        key = status.st_ino, status.st_size, status.st_mtime_ns
        if key not in self.read:
            self.read[key] = self._one_object(path.read_bytes())
        return self.read[key]

    def _one_object(self, content: bytes) -> bytes:
        return self.interned.setdefault(content, content)

    def _tear(self, content: bytes, synced: bytes) -> bytes:
        """Return what a file may hold of which only the content `synced` was synced."""
        key = id(content), id(synced)
        if key not in self.torn:
            half = len(content) // 2
            if len(content) == len(synced):  # written over in place
                torn = content[:half] + synced[half:]
            else:
                rest = content[len(synced) :] if content.startswith(synced) else content
                torn = (synced + rest[: len(rest) // 2]).ljust(len(content), b"\0") if rest else synced
            self.torn[key] = self._one_object(torn)
        return self.torn[key]

    def after_change(self) -> None:
        """Keep the disks that a crash would leave now."""
        self.busy = True
        try:
            self.changes += 1
            killed, emptied, torn = Disk(), Disk(), Disk()
            paths = sorted(self.folder.rglob("*"))
            self._forget_all_but({path.stat().st_ino for path in (self.folder, *paths)})
            for path in paths:
                name = str(path.relative_to(self.folder))
                if path.is_dir():
                    killed[name] = emptied[name] = torn[name] = None
                    continue
                content, synced = self._read(path), self.synced_files.get(self._number(path), EMPTY)
                killed[name], emptied[name], torn[name] = content, synced, self._tear(content, synced)
            for kind, disk in zip(KINDS, (killed, emptied, torn, self._synced()), strict=True):
                identity = frozenset((name, id(content)) for name, content in disk.items())
                if identity not in self.seen:
                    self.seen.add(identity)
                    self.found.append((kind, self.changes, disk))
        finally:
            self.busy = False

    def _synced(self) -> Disk:
        """Return what has been synced: files whose folder's list of names was synced with them in it."""
        disk = Disk()

        def walk(folder: int, prefix: str) -> None:
            for name, child in self.synced_names.get(folder, {}).items():
                if child in self.synced_names or (self.folder / prefix / name).is_dir():
                    disk[f"{prefix}{name}"] = None
                    walk(child, f"{prefix}{name}/")
                else:
                    disk[f"{prefix}{name}"] = self.synced_files.get(child, EMPTY)

        walk(self._number(self.folder), "")
        return disk


def read_disk(folder: Path) -> Disk:
    """Return what is in a folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def write_disk(folder: Path, disk: Disk) -> None:
    """Make a folder of these contents."""
    folder.mkdir(parents=True)
    for name, content in sorted(disk.items()):
        path = folder / name
        folder_of = path if content is None else path.parent
        folder_of.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)


def outcome(disk: Disk) -> dict[str, Any]:
    """Return what must not depend on crashes: models, checkpoints, settings, metrics and result, without times."""
    result: dict[str, Any] = {}
    for name, content in disk.items():
        if name in UNCHECKED or name.endswith(("manifest.json", "progress.json")):
            result[name] = None  # they are there; what they say of times differs
        elif name == "run.json":
            record = json.loads(content or b"")
            result[name] = {key: record.get(key) for key in ("finished", "result", "requested", "data", "texts")}
        elif name == "metrics.jsonl":
            result[name] = repeatable_metrics((content or b"").decode())
        elif name == "embeddings.json":
            record = json.loads(content or b"")
            result[name] = {key: value for key, value in record.items() if key not in UNCHECKED_KEYS}
        else:
            result[name] = content
    return result


def fork(task: Callable[[], object], out: Path) -> int:
    """Run a task in a fork of this process, which prints to a file; return the number of the fork."""
    child = os.fork()
    if not child:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = 1
        try:
            task()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def in_child(task: Callable[[], object], out: Path) -> tuple[int, str]:
    """Run a task in a fork of this process; return its exit code and what it printed."""
    code = os.waitstatus_to_exitcode(os.waitpid(fork(task, out), 0)[1])
    return code, out.read_text(errors="replace")


def train(words: Sequence[str]) -> None:
    """Do what `python train.py WORDS` does, in the current folder; words that begin with -m name a module instead."""
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(REPO / "train.py"), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")


@dataclass(frozen=True)
class Recording:
    """A run that nothing stopped, and the disks that crashes in it would have left."""

    words: list[str]
    expected: Disk
    changes: int
    disks: list[tuple[str, int, Disk]]
    """The kind of crash, the change after which it came, what it left."""


def record(words: Sequence[str], root: Path, start: Disk | None = None) -> Recording:
    """Run a command in the current folder, which keeps its run in root/run, and return all disks.

    Args:
        words: what `python train.py` is given, or -m and another command.
        root: the folder of the run.
        start: what a crash has left of it; None: nothing.

    """
    folder, saved = root / "run", root / "disks"
    setting = "output_dir" if words[0] == "-m" else "train.output_dir"
    words, known = [*words, f"{setting}={folder}"], set(sys.modules)
    shutil.rmtree(folder, ignore_errors=True)
    write_disk(folder, start or {})

    def run() -> None:
        recorder = Recorder(folder)
        recorder.watch()
        try:
            train(words)
        finally:
            recorder.after_change()
            saved.write_bytes(pickle.dumps((recorder.changes, recorder.found, sys.modules.keys() - known)))

    code, printed = in_child(run, root / "printed")
    assert code == 0, printed
    changes, disks, modules = pickle.loads(saved.read_bytes())
    for name in modules - {"__main__"}:
        importlib.import_module(name)  # so that the forks that resume need not
    return Recording(list(words), read_disk(folder), changes, disks)


def resume(recording: Recording, disk: Disk, root: Path) -> str | None:
    """Type the command again on what a crash has left; return what is wrong, None if nothing is.

    Returns:
        None, "refused: " and the sentence, or "wrong: " and how it ended.

    """
    folder = root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    write_disk(folder, disk)
    code, printed = in_child(lambda: train(recording.words), root / "printed")
    if code:
        errors = [line for line in printed.splitlines() if line.startswith("Error: ")]
        if not (code == 1 and len(errors) == 1 and "Traceback" not in printed):
            return f"wrong: exit code {code}: {printed[-1500:]}"
        if recording.words[0] != "-m" or not differences(folder, recording.expected):  # embeddings were complete
            return f"refused: {errors[0]}"
    differing = differences(folder, recording.expected)
    return f"wrong: {differing}" if differing else None


def differences(folder: Path, expected_disk: Disk) -> str:
    """Return in which files a finished run differs from the one that nothing stopped, "" if in none."""
    found, expected = outcome(read_disk(folder)), outcome(expected_disk)
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name, 0) != expected.get(name, 0))
    return f"other than uninterrupted: {', '.join(differing)}" if differing else ""


def small_run(folder: Path) -> list[str]:
    """Write data into a folder, and return the words of a run of a second that evaluates, chooses and saves."""
    from conftest import sample_files

    words = sample_files(folder)
    return [
        *words, "train.batch_size=8", "train.max_steps=6", "train.eval_steps=2", "train.save_steps=3",
        "train.logging_steps=2", "train.save_total_limit=1",
    ]  # fmt: skip


def all_runs(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the kinds of runs that the whole trial tries."""
    words = small_run(folder)
    yield "plain", words
    yield "lora", [*words, "lora=r16"]
    yield "espresso and teacher", [*words, "ese=on", "ese.compression_size=32", "teacher=self"]
    yield RESUMED, words
    for name in ("npy", "parquet"):
        yield f"embedding {name}", [*small_embedding(folder), f"format={name}"]


def small_embedding(folder: Path) -> list[str]:
    """Write texts into a folder, and return the words that embed them in a few blocks."""
    from conftest import sample_rows, write_jsonl

    from angle.data import texts

    texts.BLOCK_ROWS = 16
    write_jsonl(folder / "corpus.jsonl", [{"text": row["text1"]} for row in sample_rows("A", "train", 40)])
    return ["-m", "angle.embed", "model=tiny", "rows.name_or_path=corpus.jsonl"]


def record_resumed(words: Sequence[str], root: Path) -> Recording:
    """Record a run that goes on from what a crash has left between the two renames that replace best/."""
    straight = record(words, root)
    start = next(disk for kind, _, disk in reversed(straight.disks) if kind == "killed" and ".best.old" in disk)
    return dataclasses.replace(record(words, root, start), expected=straight.expected)


def import_libraries() -> None:
    """Import what every run needs, so that forks need not, and set what is read then."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    for name in LIBRARIES:
        importlib.import_module(name)


def main() -> int:
    """Try every disk of every kind of run; print what happened, and return how often it was wrong."""
    import_libraries()
    share, *names = sys.argv[1:] or ["1/1"]
    part, parts = map(int, share.split("/"))
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ANGLE_CACHE"] = f"{scratch}/cache"
        os.chdir(scratch)
        for number, (name, words) in enumerate(all_runs(Path(scratch))):
            if names and name not in names:
                continue
            root = Path(scratch, str(number))
            recording = record_resumed(words, root) if name == RESUMED else record(words, root)
            print(f"{name}: {recording.changes} changes, {len(recording.disks)} different disks", flush=True)
            ends: Counter[str] = Counter()
            for kind, at, disk in recording.disks[part - 1 :: parts]:
                problem = resume(recording, disk, root)
                ends[f"{kind}: {'bitwise' if problem is None else problem.partition(':')[0]}"] += 1
                if problem is not None:
                    print(f"  {kind} after change {at}: {problem}", flush=True)
                    wrong += problem.startswith("wrong")
            print(f"  {dict(sorted(ends.items()))}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))

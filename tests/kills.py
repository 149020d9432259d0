"""Kills runs of every kind at random moments, and tries whether the same command goes on to the same end, bit for bit.

`python tests/kills.py 30` kills 30 runs, in turn of each kind: two of three in the middle of a save, the third at any
moment. `python tests/kills.py 30 SEED` draws other moments. The last line says how many ended as they should.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from conftest import free_port
from crashes import CHANGES, Disk, differences, fork, import_libraries, read_disk, small_run, train

#: Settings of each kind of run, and how many processes train.
KINDS: dict[str, tuple[list[str], int]] = {
    "plain": ([], 1),
    "two processes": (["train.batch_size=4"], 2),
    "lora": (["lora=r16"], 1),
    "4-bit": (["model.name_or_path=model", "pooling=avg", "lora=r16", "model.load_kbit=4"], 1),
    "espresso": (["ese=on", "ese.compression_size=32"], 1),
    "teacher": (["teacher=self"], 1),
    "gradient cache": (["train.token_budget=64"], 1),
    "accumulation": (["train.gradient_accumulation_steps=2"], 1),
    "bf16": (["train.mixed_precision=bf16"], 1),
    "stream": (["data.streaming=true", "data.stream_window=24"], 1),
    "lora in two processes": (["train.batch_size=4", "lora=r16"], 2),
}


def run(words: list[str], processes: int, root: Path, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Run a command in forks of this process; return the exit code of the first that ended and what rank 0 printed.

    Args:
        words: what `python train.py` is given.
        processes: how many run it. Once one has failed the others are killed, as a launcher does it.
        root: the folder for what they print.
        before: called in rank 0.

    """
    port = str(free_port())

    def rank_task(rank: int) -> Callable[[], None]:
        def task() -> None:
            if processes > 1:
                ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
                os.environ |= ranks | sizes | {"ACCELERATE_USE_CPU": "true"}
            if rank == 0:
                before()
            train(words)

        return task

    children = {fork(rank_task(rank), root / f"printed-{rank}") for rank in range(processes)}
    code = 0
    while children:
        child, status = os.wait()
        children.discard(child)
        if not code and (code := os.waitstatus_to_exitcode(status)):
            for other in children:
                os.kill(other, signal.SIGKILL)
    return code, (root / "printed-0").read_text(errors="replace")


def kill_in_save(number: int) -> None:
    """Kill this process before the change of that number to a folder that is being saved."""
    changes = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in CHANGES and ".new" in str(arguments[0]):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def kill_after(seconds: float) -> None:
    """Kill this process after a time."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def saved_changes(words: list[str], processes: int, root: Path) -> tuple[Disk, int, float]:
    """Run a command that nothing stops; return what it leaves, how many changes its saves make, and its seconds."""
    log = root / "changes"

    def count() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            if event in CHANGES and ".new" in str(arguments[0]):
                os.write(descriptor, b".")

        sys.addaudithook(hear)

    start = time.monotonic()
    code, printed = run(words, processes, root, count)
    assert code == 0, printed
    return read_disk(root / "run"), log.stat().st_size, time.monotonic() - start


def save_model(folder: Path) -> None:
    """Save the built-in model, which as such is never quantised, as a model of a user's."""
    from angle.modeling.tiny import tiny_model, tiny_tokenizer
    from angle.quiet import quiet_transformers

    with quiet_transformers():
        tiny_model().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)


def main() -> int:
    """Kill as many runs as the command line says; return how often the end was another."""
    count, seed = int(sys.argv[1]), int([*sys.argv, "0"][2])
    chance, right = random.Random(seed), 0
    import_libraries()
    straight: dict[str, tuple[Disk, int, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ["ANGLE_CACHE"] = f"{scratch}/cache"
        base = small_run(Path(scratch))
        save_model(Path(scratch, "model"))
        for number in range(count):
            kind = list(KINDS)[(number + seed) % len(KINDS)]
            settings, processes = KINDS[kind]
            root = Path(scratch, kind.replace(" ", "-"))
            root.mkdir(exist_ok=True)
            words = [*base, *settings, f"train.output_dir={root / 'run'}"]
            if kind not in straight:
                straight[kind] = saved_changes(words, processes, root)
            expected, changes, seconds = straight[kind]
            shutil.rmtree(root / "run")
            if number % 3 < 2:
                change = chance.randint(1, changes)
                where, kill = f"at change {change} of {changes} in saves", partial(kill_in_save, change)
            else:
                moment = chance.uniform(0.2, 1) * seconds
                where, kill = f"after {moment:.1f} of {seconds:.1f} s", partial(kill_after, moment)
            killed, _ = run(words, processes, root, kill)
            resumed, printed = run(words, processes, root)
            problem = f"exit code {resumed}: {printed[-1500:]}" if resumed else differences(root / "run", expected)
            print(f"{kind}, {where}: {'was over' if killed == 0 else 'killed'}, {problem or 'bitwise'}", flush=True)
            right += not problem
    print(f"{right} of {count} bitwise")
    return count - right


if __name__ == "__main__":
    sys.exit(min(main(), 1))

"""The runs of the benchmark: which there are, which are left, and how one is done."""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.quality.figures import best_rate
from benchmarks.quality.inputs import Inputs, identity, in_order
from benchmarks.quality.records import Records
from benchmarks.quality.sides import PAIRS, PARTS, Part, Side, sides_of
from benchmarks.throughput import prepare
from benchmarks.throughput.bench import LOSSES
from benchmarks.throughput.jobs import OWN, Job, WorkerError, start
from benchmarks.throughput.report import hardware

WARMUP_RATIO = 0.1
#: How a side's time of a step is measured, in turns with the others: rounds, steps that count, and steps before them.
ROUNDS, TIMED_STEPS, UNTIMED_STEPS = 3, 12, 3


@dataclass(frozen=True)
class Run:
    """One model to train."""

    side: Side
    format: str
    learning_rate: float
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """As the console calls it."""
        what = f"{self.side.name}, {self.format}, {self.steps:,} steps at {self.learning_rate:g}"
        return f"{what}, seed {self.seed}"


class Bench:
    """The benchmark with its options and what is measured already."""

    def __init__(self, options: argparse.Namespace, scratch: Path, records: Records) -> None:
        """Measure nothing yet.

        Args:
            options: the options of the command line.
            scratch: an empty folder.
            records: what is measured already.

        """
        self.options, self.records = options, records
        self.inputs = Inputs(options, scratch)
        self.parts = [PARTS[name] for name in options.only or PARTS]
        self._scratch = scratch

    def sides(self, part: Part) -> list[Side]:
        """Return the sides that train in a part."""
        return sides_of(part, self.options.peers, self.options.ours)

    def steps(self, part: Part, side: Side) -> int | None:
        """Return the steps that a side trains for in a part; None if its time of a step is not measured yet."""
        epoch = math.ceil(self.inputs.count(part.format) / self.options.batch_size)
        steps: int = self.options.steps or epoch
        if part.equality != "time":
            return steps
        found = self.records.find(self._speed_settings(part.format, side))
        return None if found is None else max(1, int(steps * found["steps_per_peers_step"]))

    def rate(self, part: Part, side: Side) -> float | None:
        """Return the learning rate that validation chooses for a side in a part; None if it is not known yet."""
        records = {(run.learning_rate, run.seed): self.record(run) for run in self._choosing(part, side)}
        known = {key: record["valid"] for key, record in records.items() if record is not None}
        if not known or len(known) < len(records):
            return None
        return best_rate({rate: [known[key] for key in known if key[0] == rate] for rate, _ in known})

    def _choosing(self, part: Part, side: Side) -> list[Run]:
        """Return the runs that choose a side's learning rate; none if its number of steps is not known yet."""
        steps = self.steps(part, side)
        rates = [self.options.learning_rate] if part.equality == "settings" else self.options.rates
        seeds = self.options.seeds[: self.options.rate_seeds]
        return [Run(side, part.format, rate, steps, seed) for seed in seeds for rate in rates if steps is not None]

    def runs(self, part: Part) -> list[Run]:
        """Return the runs of a part that are known, side by side, so that a slow hour meets all.

        Those that choose learning rates come first, and then those of more seeds with what they have chosen.
        """
        choosing = itertools.zip_longest(*(self._choosing(part, side) for side in self.sides(part)))
        chosen = {side: self.rate(part, side) for side in self.sides(part)}
        more = [
            Run(side, part.format, rate, steps, seed)
            for seed in self.options.seeds
            for side, rate in chosen.items()
            if rate is not None and (steps := self.steps(part, side)) is not None
        ]
        return list(dict.fromkeys([run for each in choosing for run in each if run is not None] + more))

    def left(self, parts: Iterable[Part]) -> list[Run]:
        """Return the runs that have no record, each once."""
        runs = {str(self.settings(run)): run for part in parts for run in self.runs(part)}
        return [run for run in runs.values() if self.record(run) is None]

    def record(self, run: Run) -> dict[str, Any] | None:
        """Return what is known of a run; None if it has not ended."""
        return self.records.find(self.settings(run))

    def settings(self, run: Run) -> dict[str, Any]:
        """Return everything that determines a run's scores."""
        return {
            **self._common(run.format, run.side),
            "steps": run.steps,
            "learning_rate": run.learning_rate,
            "warmup_ratio": WARMUP_RATIO,
            "seed": run.seed,
            "order": "shared",
            "valid": identity(self.inputs.valid),
            "tests": {name: identity(path) for name, path in self.inputs.tests.items()},
        }

    def _common(self, data_format: str, side: Side) -> dict[str, Any]:
        return {
            "system": side.system,
            "options": dict(side.options),
            "format": data_format,
            "model": self.inputs.model_identity,
            "rows": identity(self.inputs.rows(data_format, whole_labels=side.whole_labels)),
            "batch_size": self.options.batch_size,
            "max_length": self.options.max_length,
            "versions": self.inputs.versions(side.system),
        }

    def _speed_settings(self, data_format: str, side: Side) -> dict[str, Any]:
        """Return what determines how many of a side's steps take the time of one of the fastest peer's."""
        machine = {"hardware": hardware(device_name()), "threads": self.options.threads}
        return {"peers": sorted(self.options.peers), **machine, **self._common(data_format, side)}

    def seconds(self, run: Run) -> float | None:
        """Return about how long a run takes, from those of its system and format that ended; None without one."""
        known = [
            record
            for record in self.records
            if "valid" in record
            and (record["settings"]["system"], record["settings"]["format"]) == (run.side.system, run.format)
        ]
        if not known:
            return None
        a_step: float = mean(record["seconds"] / record["settings"]["steps"] for record in known)
        scoring: float = mean(record["scoring_seconds"] for record in known)
        return a_step * run.steps + scoring

    def measure(self) -> int:
        """Do what is left of all parts; return the number of runs that failed."""
        failed = 0
        for part in self.parts:
            if part.equality == "settings" and self.left([part]) and not self.options.unchecked:
                self._check_losses(part)
            if part.equality == "time":
                self._measure_speed(part)
            failed += self._train_all(part)
        return failed

    def _train_all(self, part: Part) -> int:
        """Do the runs of a part that are left, some at once; return the number of those that failed.

        A run that ends may decide on a side's learning rate, and so which others there are.
        """
        failed, tried, running = 0, set[Run](), dict[Future[dict[str, Any]], Run]()
        with ThreadPoolExecutor(self.options.at_once) as pool:
            while True:
                left = [run for run in self.left([part]) if run not in tried]
                begun = left[: self.options.at_once - len(running)]
                tried |= set(begun)
                running |= {pool.submit(self.train, run): run for run in begun}
                if not running:
                    return failed
                ended = wait(running, return_when=FIRST_COMPLETED).done
                runs = [running.pop(future) for future in ended]
                rest = [*running.values(), *left[len(begun) :]]
                failed += sum(self._has_failed(part, *each, rest) for each in zip(runs, ended, strict=True))

    def _has_failed(self, part: Part, run: Run, ended: Future[dict[str, Any]], rest: Sequence[Run]) -> bool:
        """Return whether a run has failed, and print what became of it, and how long the rest takes."""
        try:
            found = ended.result()
        except WorkerError as error:
            print(f"{run.name} failed, and is tried again by the next start: {error}", file=sys.stderr)
            return True
        seconds = [self.seconds(other) for other in rest]
        minutes = "unknown" if None in seconds else f"{sum(value or 0 for value in seconds) / 60:,.0f} min"
        print(
            f"{part.name}: {run.name}: validation {100 * found['valid']:.2f}, {found['seconds']:.0f} s; the "
            f"{len(rest)} others that are known: {minutes}",
            flush=True,
        )
        return False

    def train(self, run: Run) -> dict[str, Any]:
        """Train, score the model on validation and test rows, and record both; the model is deleted.

        The test scores are in the record so that a model need not be kept, and are shown by the report alone.
        """
        folder = self._new_folder()
        try:
            return self._train(run, folder)
        finally:
            shutil.rmtree(folder)

    def _train(self, run: Run, folder: Path) -> dict[str, Any]:
        begin = time.perf_counter()
        answer = self._start(self._job(run, folder))
        seconds = time.perf_counter() - begin
        files = {"": self.inputs.valid, **self.inputs.tests}
        scored = Job(
            OWN, "score", answer["model"], "", "", max_length=self.options.max_length,
            options={"files": [str(path) for path in files.values()]},
        )  # fmt: skip
        found = self._start(scored)
        scores = {name: found[str(path)] for name, path in files.items()}
        record = {
            "valid": scores.pop(""),
            "seconds": seconds,
            "seconds_per_step": mean(answer["seconds"] or [0.0]),
            "scoring_seconds": time.perf_counter() - begin - seconds,
        }
        self.inputs.check_code()
        self.records.add(self.settings(run), side=run.side.name, **record, test=scores)
        return record

    def _job(self, run: Run, folder: Path, **changes: Any) -> Job:
        """Return the job, whose rows are those of the run's seed, for all sides in the same order."""
        source = self.inputs.rows(run.format, whole_labels=run.side.whole_labels)
        rows = folder / "rows.jsonl"
        rows.write_text(in_order(source, run.seed, run.steps * self.options.batch_size), encoding="utf-8")
        given = {
            "system": run.side.system, "task": "fit", "model": str(self.inputs.model), "scratch": str(folder),
            "rows": str(rows), "format": run.format, "batch_size": self.options.batch_size, "steps": run.steps,
            "max_length": self.options.max_length, "learning_rate": run.learning_rate, "warmup_ratio": WARMUP_RATIO,
            "seed": run.seed, "options": run.side.options,
        }  # fmt: skip
        return Job(**(given | changes))

    def _start(self, job: Job) -> dict[str, Any]:
        return start(job, self.inputs.python(job.system), self.options.threads)

    def _new_folder(self) -> Path:
        folder = self._scratch / f"run-{time.time_ns()}"
        folder.mkdir()
        return folder

    def _check_losses(self, part: Part) -> None:
        """End the benchmark unless each peer's loss of a batch, with dropout off, is that of this project."""
        model = prepare.without_dropout(self.inputs.model, self._new_folder() / "model")
        for pair in PAIRS[part.format]:
            if pair.peer.system not in self.options.peers:
                continue
            losses = []
            for side in (pair.peer, pair.own):
                run = Run(side, part.format, self.options.learning_rate, 1, 1)
                job = self._job(run, self._new_folder(), task="loss", model=model)
                losses.append(float(self._start(job)["loss"]))
            print(f"{part.name}: loss of {pair.peer.name} {losses[0]:.5f}, {pair.own.name} {losses[1]:.5f}", flush=True)
            if not abs(losses[1] / losses[0] - 1) <= LOSSES:  # also true if it is nan
                sys.exit(f"{part.name}: not the same objective, so nothing is measured.")

    def _measure_speed(self, part: Part) -> None:
        """Record, for each side that has none, how many of its steps take the time of one of the fastest peer's.

        Peers are measured again with it, in turns, so that ratios are of one hour of the machine.
        """
        sides = self.sides(part)
        missing = [side for side in sides if self.steps(part, side) is None]
        if not missing:
            return
        times: dict[str, list[float]] = {}
        for seed in range(1, ROUNDS + 1):
            for side in [side for side in sides if side in missing or side.system != OWN]:
                folder = self._new_folder()
                run = Run(side, part.format, self.options.learning_rate, UNTIMED_STEPS + TIMED_STEPS, seed)
                answer = self._start(self._job(run, folder, warmup=UNTIMED_STEPS))
                shutil.rmtree(folder)
                times.setdefault(side.name, []).append(mean(answer["seconds"]))
                print(f"{part.name}: {side.name}: {1000 * times[side.name][-1]:,.0f} ms a step", flush=True)
        fastest = min((times[side.name] for side in sides if side.system != OWN), key=median)
        for side in missing:
            ratio = median(peer / own for peer, own in zip(fastest, times[side.name], strict=True))
            settings = self._speed_settings(part.format, side)
            a_step = median(times[side.name])
            self.records.add(settings, side=side.name, steps_per_peers_step=ratio, seconds_per_step=a_step)


def device_name() -> str | None:
    """Return the name of the GPU; None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None

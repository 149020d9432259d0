"""One run of the benchmark: check that the losses agree, then measure the systems in turn."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from angle.kernels.registry import INSTALLED
from benchmarks.throughput import prepare
from benchmarks.throughput.figures import distinct_tokens
from benchmarks.throughput.jobs import (
    ANGLE_EMB,
    BARE,
    KERNEL_TECHNIQUES,
    OWN,
    PEERS,
    SBERT,
    TECHNIQUES,
    Job,
    WorkerError,
    start,
)
from benchmarks.throughput.report import Measured
from benchmarks.throughput.workloads import Workload

#: Maximum relative difference of losses, and maximum absolute difference of embeddings.
LOSSES, EMBEDDINGS = 1e-3, 1e-5
#: Layers of a randomly initialised shape when losses are checked, which is done in float32.
CHECKED_LAYERS = 2


class Bench:
    """The models and rows of a run, and the measurements on them."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        """Create nothing yet; models and rows are made on demand.

        Args:
            options: the options of the command line.
            scratch: an empty folder.

        """
        self.options, self.scratch = options, scratch
        self._numbers = itertools.count()
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._checked: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._models: dict[tuple[str, int | None], Path] = {}

    @cached_property
    def peer_python(self) -> str:
        """The interpreter of angle_emb's environment."""
        return prepare.peer_python()

    def measure(self, workload: Workload, precision: str) -> Measured:
        """Return the results of all rounds of a workload in a precision."""
        if not workload.is_training:
            return self._measure_encoding(workload)
        checks, failed = ([], {}) if self.options.unchecked else self._checks(workload)
        rows, job = self._training(workload)
        job = replace(job, precision=precision)
        tokens = self._tokens_of_a_step(workload, rows, job)
        done = Measured(workload, precision, tokens, workload.batch_size, checks=checks, failed=dict(failed))
        for _ in range(self.options.rounds):
            for system in (*self._systems(workload), BARE):
                self._answer(done, replace(job, system=system, scratch=str(self._new_folder())))
        return done

    def take_apart(self, workload: Workload, precision: str) -> Measured:
        """Return the same for this project only: as it is, without each of its techniques, and without all of them."""
        rows, job = self._training(workload)
        job = replace(job, precision=precision)
        tokens = self._tokens_of_a_step(workload, rows, job)
        done = Measured(workload, precision, tokens, workload.batch_size, apart=True)
        for _ in range(self.options.rounds):
            self._answer(done, replace(job, scratch=str(self._new_folder())))
            status = done.answers[OWN][0]["kernels"]  # later runs use the same kernels as the first
            job = replace(job, kernels=tuple(name for name, state in status.items() if state == INSTALLED))
            unused = {
                name: f"not used: {status[kernel]}"
                for name, kernel in KERNEL_TECHNIQUES.items()
                if kernel not in job.kernels
            }
            done.failed |= {f"without {name}": why for name, why in unused.items()}
            used = tuple(name for name in TECHNIQUES if name not in unused)
            variants = {f"without {name}": (name,) for name in used} | {"without all of these": used}
            for name, without in variants.items():
                self._answer(done, replace(job, without=without, scratch=str(self._new_folder())), name)
        return done

    def _systems(self, workload: Workload) -> list[str]:
        """Return this project and the requested peers, in all their variants."""
        return [name for name in workload.systems if name == OWN or name.startswith(tuple(self.options.peers))]

    def _answer(self, done: Measured, job: Job, name: str | None = None) -> None:
        """Add an answer; a peer that cannot do the work here is left out from then on, and the others continue."""
        if job.system in done.failed:
            return
        try:
            answer = self._start(job)
        except WorkerError as error:
            if job.system in (OWN, BARE):
                raise
            done.answers.pop(job.system, None)
            done.failed[job.system] = reason(error)
            return
        done.answers.setdefault(name or job.system, []).append(answer)
        times = {"": answer["seconds"], " of its threads": answer.get("cpu"), " in its collator": answer.get("outside")}
        words = (
            f"{1000 * median(seconds):8,.0f} ms{what}" for what, seconds in times.items() if seconds and any(seconds)
        )
        print(f"  {name or job.system:34}{''.join(words)}", file=sys.stderr, flush=True)

    def _start(self, job: Job) -> dict[str, Any]:
        return start(job, self.peer_python if job.system == ANGLE_EMB else sys.executable)

    def _new_folder(self) -> Path:
        folder = self.scratch / str(next(self._numbers))
        folder.mkdir()
        return folder

    def _training(self, workload: Workload) -> tuple[list[dict[str, Any]], Job]:
        """Return the rows of all steps, and a job that trains on them."""
        steps = (self.options.steps or workload.steps) + self.options.warmup
        rows, others = prepare.choose(self._all_rows(workload.rows, workload.format), steps * workload.batch_size)
        job = Job(
            OWN,
            "train",
            str(self._model(workload.model)),
            prepare.write_rows(self._new_folder() / "rows.jsonl", [*rows, *others]),
            "",
            workload.format,
            workload.batch_size,
            steps=steps,
            warmup=self.options.warmup,
            **workload.settings,  # type: ignore[arg-type]
        )
        return rows, job

    def _tokens_of_a_step(self, workload: Workload, rows: Sequence[dict[str, Any]], job: Job) -> float:
        texts = [[row[column] for column in row if column != "label"] for row in rows]
        lengths = prepare.text_lengths(Path(job.model), [text for row in texts for text in row], job.max_length)
        size = workload.batch_size
        starts = range(self.options.warmup * size, len(texts), size)
        return mean(distinct_tokens(texts[first : first + size], lengths) for first in starts)

    def _all_rows(self, name: str, data_format: str) -> list[dict[str, Any]]:
        if name not in self._rows:
            source = {"stsb": self.options.stsb, "nli": self.options.nli, "stsb-test": self.options.stsb_test}[name]
            self._rows[name] = prepare.read_rows(source, "test" if name == "stsb-test" else "train", data_format)
        return self._rows[name]

    def _model(self, name: str, layers: int | None = None) -> Path:
        given = {"minilm": self.options.minilm, "smollm2": self.options.smollm2}
        key = (name, layers)
        if key not in self._models:
            self._models[key] = (
                prepare.find_model(given[name])
                if name in given
                else prepare.random_model(name, self._model("minilm"), self._new_folder(), layers)
            )
        return self._models[key]

    def _checks(self, workload: Workload) -> tuple[list[str], dict[str, str]]:
        if workload.name not in self._checked:
            self._checked[workload.name] = self._check_losses(workload)
        return self._checked[workload.name]

    def _check_losses(self, workload: Workload) -> tuple[list[str], dict[str, str]]:
        """Compare each peer's loss on one batch, with dropout off, with this project's for the peer's objective.

        Returns:
            What was found to agree, in words; and the peers that could not compute the loss, with the reasons.

        """
        _, job = self._training(workload)
        rows = job.read()[: workload.batch_size]
        is_random = workload.model not in ("minilm", "smollm2")
        model = self._model(workload.model, CHECKED_LAYERS if is_random else None)
        model_without = prepare.without_dropout(model, self._new_folder() / "model")
        plain = replace(job, task="loss", model=model_without, bits=None, dtype="float32", both_directions=False)
        words, failed = list[str](), dict[str, str]()
        for peer in PEERS:
            if peer not in self._systems(workload):
                continue
            # angle_emb multiplies labels into indices: only labels of 0 and 1 give the intended targets.
            ones = peer == ANGLE_EMB and workload.format == "A"
            middle = median(row["label"] for row in rows) if ones else 0
            batch = [row | {"label": float(row["label"] > middle)} for row in rows] if ones else rows
            there = replace(plain, rows=prepare.write_rows(self._new_folder() / "rows.jsonl", batch))
            found = {}
            try:
                for system in (peer, OWN):
                    asked = replace(there, system=system, objective=peer, scratch=str(self._new_folder()))
                    found[system] = float(self._start(asked)["loss"])
            except WorkerError as error:
                if peer in found:
                    raise
                failed[peer] = reason(error)
                continue
            apart = abs(found[OWN] / found[peer] - 1)
            words.append(
                f"loss of {peer} {found[peer]:.5f}, here {found[OWN]:.5f}{' (labels 0 and 1)' if ones else ''}"
            )
            if not apart <= LOSSES:  # also true if it is nan
                sys.exit(f"{workload.name}: {words[-1]}: not the same work, so nothing is measured.")
        return words, failed

    def _measure_encoding(self, workload: Workload) -> Measured:
        rows = self._all_rows(workload.rows, "A")
        texts = list(dict.fromkeys(row[role] for row in rows for role in ("text1", "text2")))
        model = self._model(workload.model)
        job = Job(
            OWN,
            "encode",
            str(model),
            prepare.write_rows(self._new_folder() / "texts.jsonl", [{"text": text} for text in texts]),
            "",
            batch_size=workload.batch_size,
        )
        tokens = sum(prepare.text_lengths(model, texts, job.max_length).values())
        done, apart = Measured(workload, "float32", tokens, len(texts)), 0.0
        for _ in range(self.options.rounds):
            folders = {}
            for system in self._systems(workload):
                folders[system] = self._new_folder()
                self._answer(done, replace(job, system=system, scratch=str(folders[system])))
            if SBERT not in done.answers:
                continue
            own, peer = (np.load(folders[system] / "embeddings.npy") for system in (OWN, SBERT))
            now = float(np.abs(own - peer).max())
            if not now <= EMBEDDINGS:
                sys.exit(f"{workload.name}: embeddings lie {now:.1e} apart: not the same work.")
            apart = max(apart, now)
        if SBERT in done.answers:
            done.checks.append(f"embeddings lie at most {apart:.1e} apart")
        return done


def reason(error: WorkerError) -> str:
    """Print why a peer could not do the work, and return it in a few words."""
    print(f"  {error}", file=sys.stderr, flush=True)
    return "out of memory" if "out of memory" in str(error).lower() else "failed"

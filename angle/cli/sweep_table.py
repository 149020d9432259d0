"""The table that ends a sweep: what each setting scored, over its seeds, and which is best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from angle.cli.sweep_record import SEED, JobResult
from angle.terminal import COLUMNS, labelled

#: Columns of the numbers behind a setting.
NUMBER_COLUMNS = 30


@dataclass(frozen=True)
class Candidate:
    """A setting, and its jobs, which differ in their seed alone."""

    name: str
    jobs: tuple[JobResult, ...]

    @property
    def scored(self) -> list[JobResult]:
        """The jobs with a score."""
        return [job for job in self.jobs if job.score is not None]

    @property
    def mean(self) -> float | None:
        """The mean score, higher is better; None without one."""
        return statistics.fmean(job.score or 0.0 for job in self.scored) if self.scored else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the scores, None if there are fewer than two."""
        return statistics.stdev(job.score or 0.0 for job in self.scored) if len(self.scored) > 1 else None


def candidates(jobs: Sequence[JobResult]) -> list[Candidate]:
    """Return the settings of a sweep, in the order of their first jobs."""
    groups: dict[str, list[JobResult]] = {}
    only_seeds = all(job.settings.keys() <= {SEED} for job in jobs)
    for job in jobs:
        name = " ".join(f"{key}={value}" for key, value in job.settings.items() if key != SEED)
        groups.setdefault(name if not only_seeds else "all seeds", []).append(job)
    return [Candidate(name, tuple(group)) for name, group in groups.items()]


def comparison_table(jobs: Sequence[JobResult]) -> str:
    """Return a table of what was measured of each setting, followed by the folder of the best job."""
    from angle.evaluation.run_evaluators import metric_named

    scored = [job for job in jobs if job.score is not None]
    metrics = {metric_named(job.best_metric) for job in scored or jobs}
    has_seeds = any(len(candidate.jobs) > 1 for candidate in candidates(jobs))
    compared = candidates(jobs) if has_seeds else [Candidate(job.overrides, (job,)) for job in jobs]
    best = max(compared, key=lambda one: -float("inf") if one.mean is None else one.mean) if len(metrics) == 1 else None
    if best is not None and best.mean is None:
        best = None
    width = min(max(len(candidate.name) for candidate in compared), COLUMNS - NUMBER_COLUMNS)
    header = next(iter(metrics)).label if len(metrics) == 1 else "score"
    column = max(8, len(header))
    lines = [f"{'':{width}}  {header:>{column}}{'     sd   n' if has_seeds else ''}"]
    for candidate in compared:
        if len(candidate.name) > width:
            lines.append(candidate.name)
        cell, spread, failed = "–", "", sum(job.error is not None for job in candidate.jobs)
        if candidate.mean is not None:
            metric = metric_named(candidate.scored[0].best_metric)
            cell = metric.format(metric.score(candidate.mean))
            if has_seeds:
                deviation = "" if candidate.deviation is None else metric.format(candidate.deviation)
                spread = f"{deviation:>7}{len(candidate.scored):>4}"
        elif failed:
            cell = "failed"
        elif any(job.pruned for job in candidate.jobs):
            cell = "pruned"
        notes = ["best"] if candidate is best else []
        if failed and has_seeds:
            notes.append(f"{failed} of {len(candidate.jobs)} failed")
        name = candidate.name if len(candidate.name) <= width else ""
        lines.append("  ".join([f"{name:{width}}", f"{cell:>{column}}{spread}", *notes]).rstrip())
    errors = dict.fromkeys(f"{job.overrides}: {job.error}" for job in jobs if job.error is not None)
    lines += ["", *(labelled("failed", error) for error in errors)] if errors else []
    if best is not None:
        winner = max(best.scored, key=lambda job: job.score or 0.0)
        lines += ["", f"Best    {winner.folder}"]
        if has_seeds and len(best.scored) > 1:
            lines[-1:] = [
                labelled("Best", f"{best.name}, by the mean of its {len(best.scored)} seeds; its best run is")
            ]
            lines += [f"        {winner.folder}"]
    elif all(job.error is not None for job in jobs):
        lines += ["", f"All {len(jobs)} jobs have failed."]
    elif all(job.trained for job in jobs):
        lines += ["", "No scores, so nothing is compared: data.valid_sts.name_or_path=... measures every job."]
    return "\n".join(lines)

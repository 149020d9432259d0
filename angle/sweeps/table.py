"""The table that ends a sweep: what each setting scored, over its seeds, and which is best."""

from __future__ import annotations

from collections.abc import Sequence

from angle.sweeps.record import JobResult
from angle.sweeps.settings import Setting, by_setting
from angle.terminal import COLUMNS, labelled

#: Columns of the numbers behind a setting.
NUMBER_COLUMNS = 30


def comparison_table(jobs: Sequence[JobResult]) -> str:
    """Return a table of what was measured of each setting, followed by the folder of the best job."""
    from angle.evaluation.run_evaluators import metric_named

    metrics = {metric_named(job.best_metric) for job in [job for job in jobs if job.score is not None] or jobs}
    metric = metrics.pop() if len(metrics) == 1 else None
    compared = by_setting(jobs)
    has_seeds = len(compared) < len(jobs)
    if not has_seeds:
        compared = [Setting(job.settings, [job]) for job in jobs]
    scored = [setting for setting in compared if setting.mean is not None]
    best = max(scored, key=lambda setting: setting.mean or 0.0) if scored and metric is not None else None
    width = min(max(len(setting.name) for setting in compared), COLUMNS - NUMBER_COLUMNS)
    # What is measured without training depends on the tasks, of which there may be several kinds.
    header = metric.label if metric is not None and any(job.trained for job in jobs) else "score"
    column = max(8, len(header))
    lines = [f"{'':{width}}  {header:>{column}}{'     sd   n' if has_seeds else ''}"]
    for setting in compared:
        if len(setting.name) > width:
            lines.append(setting.name)
        failed = sum(job.error is not None for job in setting.jobs)
        notes = ["best"] if setting is best else []
        if failed and has_seeds:
            notes.append(f"{failed} of {len(setting.jobs)} failed")
        cell, spread = _cells(setting)
        name = setting.name if len(setting.name) <= width else ""
        numbers = f"{cell:>{column}}{spread if has_seeds else ''}"
        lines.append("  ".join([f"{name:{width}}", numbers, *notes]).rstrip())
    errors = dict.fromkeys(f"{job.overrides}: {job.error}" for job in jobs if job.error is not None)
    lines += ["", *(labelled("failed", error) for error in errors)] if errors else []
    if best is not None:
        lines += ["", *_winner(best)]
    elif all(job.error is not None for job in jobs):
        lines += ["", f"All {len(jobs)} jobs have failed."]
    elif all(job.trained for job in jobs):
        lines += ["", "No scores, so nothing is compared: data.valid_sts.name_or_path=... measures every job."]
    return "\n".join(lines)


def _cells(setting: Setting[JobResult]) -> tuple[str, str]:
    """Return the mean score of a setting, or why it has none, and the spread of its seeds."""
    from angle.evaluation.run_evaluators import metric_named

    if setting.mean is None:
        if any(job.error is not None for job in setting.jobs):
            return "failed", ""
        return ("pruned" if any(job.pruned for job in setting.jobs) else "–"), ""
    metric = metric_named(next(job.best_metric for job in setting.jobs if job.score is not None))
    deviation = "" if setting.deviation is None else metric.format(setting.deviation)
    return metric.format(metric.score(setting.mean)), f"{deviation:>7}{len(setting.scores):>4}"


def _winner(best: Setting[JobResult]) -> list[str]:
    run = max((job for job in best.jobs if job.score is not None), key=lambda job: job.score or 0.0)
    if len(best.scores) < 2:
        return [f"Best    {run.folder}"]
    sentence = f"{best.name}, by the mean of its {len(best.scores)} seeds; its best run is"
    return [labelled("Best", sentence), f"        {run.folder}"]

"""What a user wants to know of a soup: what it is made of, whether it is better than that, and what to type next."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator

from angle.evaluation.evaluator import Metric
from angle.evaluation.run_evaluators import TEST_METRIC
from angle.files import relative_to_cwd
from angle.soups.soup import Soup
from angle.training.result import Result
from angle.training.summary import use_commands


def summary(soup: Soup) -> Iterator[tuple[str, str]]:
    """Yield lines on a soup, each with its label."""
    parts = [f"{share:.3g} {each.name}" for each, share in zip(soup.ingredients, soup.shares, strict=True)]
    mean = " + ".join(parts)
    if soup.base_share:
        start = soup.ingredients[0].config.model.name_or_path
        mean = f"{1 - soup.base_share:g} ({mean}) + {soup.base_share:g} {start}"
    yield "Soup", mean
    if soup.metric is not None:
        scores = [each.score for each in soup.ingredients]
        yield "Valid", _compared(soup.metric, soup.score, scores)
    if soup.measured.test is not None:
        yield "Test", _compared(TEST_METRIC, soup.measured.test, [each.test_score for each in soup.ingredients])
    for note in soup.notes:
        yield "Note", f"{note}"


def _compared(metric: Metric, score: float | None, of_runs: list[float | None]) -> str:
    """Return a score beside those of the runs."""
    known = [value for value in of_runs if value is not None]
    assert score is not None
    text = f"{metric.label} {metric.format(score)}"
    if len(known) < len(of_runs) or not known:
        return text
    best = max(known, key=metric.score)
    if len(known) == 1:
        return f"{text} (the run: {metric.format(best)})"
    return f"{text} (the runs: {metric.format(statistics.fmean(known))} in the mean, {metric.format(best)} the best)"


def next_commands(soup: Soup) -> list[list[str]]:
    """Return what to type next, as words that a shell takes."""
    run = relative_to_cwd(soup.folder)
    best_metric = None if soup.metric is None else soup.metric.name
    result = Result(soup.folder, best_metric=best_metric, test_after=soup.measured.test)
    return [*use_commands(result, run), ["python", "-m", "angle.report", shlex.quote(run)]]

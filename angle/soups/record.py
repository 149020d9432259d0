"""config.yaml and run.json of a soup, which make its folder one of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.config.record import CONFIG_CHECKSUM, write_config, write_record
from angle.soups.compatibility import have_same_test, have_same_validation, started_from_the_same
from angle.training.describe import describe_environment

if TYPE_CHECKING:
    from accelerate import Accelerator

    from angle.soups.soup import Soup


def write_run(folder: Path, soup: Soup, accelerator: Accelerator) -> None:
    """Write the settings of a soup's first run, and a finished run's record that says what the soup is."""
    runs = soup.ingredients
    first = runs[0]
    checksum = write_config(folder, first.config)
    has_start = started_from_the_same(runs)
    record = {
        "finished": True,
        "seed": first.config.train.seed,
        "data": _common([each.record.get("data", {}) for each in runs]),
        "rows": _common([each.record.get("rows", {}) for each in runs]),
        "weights": {"model": first.started_from} if has_start else {},
        **describe_environment(accelerator),
        "kernels": soup.measured.kernels,
        "layout": soup.measured.layout,
        "requested": first.record.get("requested", {}),
        CONFIG_CHECKSUM: checksum,
        "notes": soup.notes,
        "result": _result(soup, has_start=has_start),
        "example": soup.measured.example,
        "seconds": round(sum(each.record.get("seconds", 0.0) for each in runs), 1),
        "texts": sum(each.record.get("texts", 0) for each in runs),
        "soup": _description(soup),
    }
    write_record(folder, record)


def _description(soup: Soup) -> dict[str, Any]:
    described: dict[str, Any] = {
        "method": soup.method,
        "base_share": soup.base_share,
        "settings_of": str(soup.ingredients[0].folder.resolve()),
        "ingredients": [
            {
                "folder": str(each.folder.resolve()),
                "model": each.model.name,
                "seed": each.config.train.seed,
                "weight": share,
                "score": each.score,
                "test_score": each.test_score,
                "fingerprint": each.fingerprint,
            }
            for each, share in zip(soup.ingredients, soup.shares, strict=True)
        ],
    }
    if soup.tries:
        described["tried"] = [
            {
                "folder": str(tried.ingredient.folder.resolve()),
                "score": tried.ingredient.score,
                "soup_score": tried.soup_score,
                "kept": tried.is_kept,
            }
            for tried in soup.tries
        ]
    return described


def _result(soup: Soup, *, has_start: bool) -> dict[str, Any]:
    """Return what was measured; before training, it was measured by the runs."""
    runs, metric = soup.ingredients, soup.metric
    before = runs[0].result
    was_validated = has_start and have_same_validation(runs) and bool(soup.measured.values)
    was_tested = has_start and have_same_test(runs) and soup.measured.test is not None
    return {
        "best_metric": None if metric is None else metric.name,
        "best_score": soup.score,
        "best_step": None,
        "steps": None,
        "stopped_early": False,
        "pruned": False,
        "valid_before": before["valid_before"] if was_validated else {},
        "valid_after": soup.measured.values,
        "valid_word_overlap": before["valid_word_overlap"] if was_validated else None,
        "test_before": before["test_before"] if was_tested else None,
        "test_after": soup.measured.test,
        "test_word_overlap": before["test_word_overlap"] if was_tested else None,
    }


def _common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries that all mappings have."""
    return {name: value for name, value in values[0].items() if all(each.get(name) == value for each in values)}

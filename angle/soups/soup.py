"""Making a soup: runs in, the mean of their weights out, as the folder of a run.

Wortsman et al. (2022), "Model soups", https://arxiv.org/abs/2203.05482: the mean of the weights of models that were
trained from the same start is often better than the best of them, at the cost of one. A share of the start itself keeps
what training has forgotten: Xiao et al. (2023), "LM-Cocktail", https://arxiv.org/abs/2311.13534.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from angle.distributed.environment import launch_time, world_size
from angle.errors import ConfigError, DataError
from angle.evaluation.evaluator import Metric
from angle.evaluation.predictions import AFTER, BEFORE, Predictions
from angle.files import MANIFEST, explained_disk_errors, remove, replace_folder, write_manifest
from angle.modeling.encoder import Encoder
from angle.modeling.locations import ADAPTER_FILE
from angle.modeling.weight_files import ADAPTER_WEIGHT_FILES, WEIGHT_FILES
from angle.soups import adapters
from angle.soups.compatibility import (
    check_compatible,
    check_same_start,
    check_same_validation,
    have_same_test,
    have_same_validation,
    started_from_the_same,
)
from angle.soups.ingredients import GREEDY, UNIFORM, Ingredient, find_ingredients
from angle.soups.measuring import Measured, SoupMeasurer
from angle.soups.record import write_run
from angle.soups.weights import check_equal_tensors, normalized, read_tensor_infos, safetensors_files, write_mean

#: The soup's model in its folder.
FINAL = "final"


@dataclass(frozen=True)
class Try:
    """A run that a greedy soup has tried to add."""

    ingredient: Ingredient
    soup_score: float
    """Of the soup with it."""
    is_kept: bool


@dataclass(frozen=True)
class Soup:
    """The outcome."""

    folder: Path
    method: str
    ingredients: list[Ingredient]
    shares: list[float]
    """The weight of each in the mean of the runs; they sum to 1."""
    base_share: float
    """The weight of the model that they started from; that of the mean is the rest."""
    measured: Measured
    tries: list[Try] = field(default_factory=list)
    """With greedy, all runs in the order in which they were tried."""
    notes: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    @property
    def metric(self) -> Metric | None:
        """What the runs' best models were chosen by; None if the soup was not measured by it."""
        metric = self.ingredients[0].metric
        return metric if metric is not None and metric.name in self.measured.values else None

    @property
    def score(self) -> float | None:
        """Its value of that metric."""
        return None if self.metric is None else self.measured.values[self.metric.name]


def make_soup(
    folders: Sequence[Path],
    method: str = UNIFORM,
    weights: Sequence[float] | None = None,
    base_share: float = 0.0,
    output: Path | None = None,
    report: Callable[[Try], object] = lambda tried: None,
) -> Soup:
    """Write the mean of the weights of runs as a run's folder, completely or not at all, and return what it is.

    Args:
        folders: those of finished runs, or that of one sweep.
        method: uniform: the mean of all; greedy: each run, the best first, is kept if the soup with it scores no worse
            on the validation rows (Wortsman et al., Recipe 1).
        weights: the weight of each run in the mean; None for equal ones.
        base_share: the share b of the model that the runs started from: (1 - b) * mean + b * base.
        output: the new folder; None for one in soups/ that is named by the time.
        report: called with each run that a greedy soup has tried.

    Raises:
        ConfigError, DataError: anything wrong with the arguments, or runs whose weights have no mean.

    """
    _check_arguments(folders, method, weights, base_share)
    target = _new_folder(output)
    ingredients = find_ingredients(folders, method, at_least=1 if base_share else 2)
    if weights is not None and len(weights) != len(ingredients):
        raise ConfigError(f"--weights has {len(weights)} numbers for {len(ingredients)} runs: give one for each run.")
    check_compatible(ingredients)
    if method == GREEDY:
        check_same_validation(ingredients)
    if base_share:
        _check_base(ingredients)

    def write(scratch: Path) -> Soup:
        scratch.mkdir()
        maker = _SoupMaker(ingredients, weights or [1.0] * len(ingredients), base_share, scratch)
        soup = maker.greedy(target, report) if method == GREEDY else maker.uniform(target)
        _write_predictions(soup, scratch)
        write_run(scratch, soup, maker.measurer.accelerator)
        return soup

    with explained_disk_errors(target, "type the same command again."):
        return replace_folder(target, write)


def _check_arguments(folders: Sequence[Path], method: str, weights: Sequence[float] | None, base_share: float) -> None:
    if world_size() > 1:
        raise ConfigError("python -m angle.soup runs in one process: type it without a launcher.")
    if not 0 <= base_share < 1:
        raise ConfigError(
            f"--base-share {base_share:g} cannot work: give a share of 0 or more and below 1; 1 would be the model "
            f"that the runs started from, unchanged."
        )
    if weights is None:
        return
    if method == GREEDY:
        raise ConfigError("--weights cannot work with --method greedy, which weighs what it keeps equally.")
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"--weights {weight:g} cannot work: give numbers above 0, and leave a run out for 0.")
    if len(weights) != len(folders):
        raise ConfigError(
            f"--weights has {len(weights)} numbers for {len(folders)} folders: give one for each run, in their order."
        )


def _new_folder(output: Path | None) -> Path:
    """Return the folder for the soup, which is checked first, so that nothing is computed in vain."""
    folder = output or Path("soups") / launch_time()
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if existing.is_file():
        raise ConfigError(f"--output-dir {folder} cannot be a folder: {existing} is a file; give a new folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"--output-dir {folder} holds files already, so nothing is written there; give a new folder.")
    return folder


def _check_base(ingredients: Sequence[Ingredient]) -> None:
    """Check that all runs started from one model, which adapters are updates of."""
    first = ingredients[0]
    for other in ingredients:
        check_same_start(first, other, "--base-share mixes it in")
    if first.has_adapters and first.config.model.adapter is not None and not first.config.lora.enabled:
        raise ConfigError(
            f"--base-share cannot work with {first.name}, which trained a saved adapter further "
            f"(model.adapter={first.config.model.adapter}): leave it out."
        )


@dataclass
class _SoupMaker:
    """Makes soups of ingredients in a folder that is being written."""

    ingredients: Sequence[Ingredient]
    weights: Sequence[float]
    base_share: float
    scratch: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        validation, test = have_same_validation(self.ingredients), have_same_test(self.ingredients)
        self.measurer = SoupMeasurer(self.ingredients[0], validation=validation, test=test)
        if not validation and any(each.score is not None for each in self.ingredients):
            self.notes.append(
                "the runs were measured on different validation rows or by different metrics, so the soup was on none"
            )

    def uniform(self, target: Path) -> Soup:
        """Write the mean of all, and return it."""
        return self._finish(target, UNIFORM, list(self.ingredients), list(self.weights))

    def greedy(self, target: Path, report: Callable[[Try], object]) -> Soup:
        """Write the mean of those that make it no worse, and return it."""
        metric = self.ingredients[0].metric
        assert metric is not None
        ordered = sorted(self.ingredients, key=lambda each: -metric.score(each.score or 0.0))
        kept: list[Ingredient] = []
        tries: list[Try] = []
        best: float | None = None
        for ingredient in ordered:
            tried = self.scratch / "soup"
            write_model([*kept, ingredient], [1.0] * (len(kept) + 1), tried)
            score = self.measurer.validate(tried)[metric.name]
            remove(tried)
            is_kept = best is None or metric.score(score) >= metric.score(best)
            if is_kept:
                kept, best = [*kept, ingredient], score
            tries.append(Try(ingredient, score, is_kept))
            report(tries[-1])
        if len(kept) == 1 < len(ordered):
            self.notes.append(f"every other run made it worse, so it is {kept[0].name} alone")
        return self._finish(target, GREEDY, kept, [1.0] * len(kept), tries)

    def _finish(
        self,
        target: Path,
        method: str,
        kept: list[Ingredient],
        weights: list[float],
        tries: Sequence[Try] = (),
    ) -> Soup:
        model = self.scratch / FINAL
        write_model(kept, weights, model, self.base_share)
        try:
            measured = self.measurer.measure(model)
        except DataError as error:
            if method == GREEDY:
                raise
            self.notes.append(f"the soup was not measured: {error}")
            self.measurer = SoupMeasurer(self.ingredients[0], validation=False, test=False)
            measured = self.measurer.measure(model)
        shares = normalized(weights)
        return Soup(target, method, kept, shares, self.base_share, measured, list(tries), self.notes)


def write_model(
    ingredients: Sequence[Ingredient], weights: Sequence[float], folder: Path, base_share: float = 0.0
) -> None:
    """Write the model that is the weighted mean of those of runs, in part of the one that they started from.

    Args:
        ingredients: the runs, which are compatible.
        weights: the weight of each.
        folder: the new folder.
        base_share: see `make_soup`.

    """
    first = ingredients[0].model
    folders = [each.model for each in ingredients]
    shares = [(1 - base_share) * share for share in normalized(weights)]
    replaced = {MANIFEST, ADAPTER_FILE, *ADAPTER_WEIGHT_FILES} if ingredients[0].has_adapters else {MANIFEST}
    if not ingredients[0].has_adapters:
        replaced |= {file.name for file in safetensors_files(first)} - {WEIGHT_FILES[1]}

    def ignored(place: str, names: list[str]) -> set[str]:
        return replaced & set(names) if Path(place) == first else set()

    shutil.copytree(first, folder, ignore=ignored)
    if ingredients[0].has_adapters:
        adapters.write_sum(folders, shares, folder)
    elif base_share:
        base = folder.with_name("base")
        _save_base(ingredients[0], base)
        names = f"{ingredients[0].name} and the model that it started from"
        check_equal_tensors(read_tensor_infos(first), read_tensor_infos(base), names)
        write_mean([*folders, base], [*shares, base_share], folder)
        remove(base)
    else:
        write_mean(folders, shares, folder)
    write_manifest(folder, {})


def _save_base(ingredient: Ingredient, folder: Path) -> None:
    """Write the model that a run started from as the run would have saved it, without a step.

    Raises:
        ConfigError: its weights have changed since.

    """
    config = ingredient.config
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)  # for weights that its files lack, such as a pooler
        encoder = Encoder.load(config.model, config.pooling, billm=config.billm)
    if encoder.fingerprints != ingredient.started_from:
        raise ConfigError(
            f"--base-share cannot work: the weights of {config.model.name_or_path} have changed since "
            f"{ingredient.name} started from them; put the old ones back."
        )
    encoder.save(folder)


def _write_predictions(soup: Soup, scratch: Path) -> None:
    """Write what the soup says of the validation rows, beside what the model said that its runs started from."""
    if soup.measured.predictions is None:
        return
    soup.measured.predictions.save(scratch, AFTER)
    first = soup.ingredients[0]
    with suppress(DataError):  # what is damaged is not worth the soup
        before = Predictions.load(first.folder, BEFORE)
        if before is not None and started_from_the_same(soup.ingredients):
            before.save(scratch, BEFORE)

"""The Pareto frontier of a model: every depth times every width of its embeddings, scored in one pass over the data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from angle import figures
from angle.config import EvaluateConfig
from angle.errors import ConfigError
from angle.evaluation.evaluators.espresso_grid import EspressoGridEvaluator
from angle.evaluation.metrics import Floats
from angle.evaluation.tasks import GRID_FILE, load_tasks
from angle.figures import Figure
from angle.files import write_durably
from angle.modeling.embedding_config import EmbeddingConfig

if TYPE_CHECKING:
    from accelerate import PartialState

#: Maximum number of depths, and smallest width, that are scored by default.
MAX_DEPTHS, MIN_WIDTH = 12, 8
#: Maximum number of lines of the Pareto frontier in a terminal.
MAX_LINES = 10


@dataclass(frozen=True)
class Grid:
    """Spearman correlations for every depth and width."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    layers: int
    dimensions: int
    scores: dict[str, Floats]
    """Scores by task, (depths, widths), between -1 and 1."""
    folder: Path
    """Where grid.json and grid.png are."""
    embedding_config: EmbeddingConfig

    @property
    def mean(self) -> Floats:
        """The mean over all tasks, (depths, widths)."""
        mean: Floats = np.mean(list(self.scores.values()), axis=0)
        return mean

    @property
    def score(self) -> float:
        """The mean at the largest depth and width."""
        return float(self.mean[-1, -1])

    @property
    def saved_files(self) -> str:
        """What was written, in words."""
        return f"{self.folder}/grid.png, and the numbers in grid.json"

    def pareto(self) -> list[tuple[int, int, float]]:
        """Return (depth, width, score) of each cell whose score no smaller cell matches or beats, best first."""
        cells = [
            (depth, width, float(self.mean[row, column]))
            for row, depth in enumerate(self.depths)
            for column, width in enumerate(self.widths)
        ]
        frontier = [
            cell
            for cell in cells
            if not any(other is not cell and _is_no_larger(other, cell) and other[2] >= cell[2] for other in cells)
        ]
        return sorted(frontier, key=lambda cell: -cell[2])

    def __str__(self) -> str:
        """Return the table of scores, times 100, with the Pareto frontier below it."""
        lines = [
            f"{'Spearman':>10}  {'dimensions':<10}",
            f"{'layers':>10}  " + "  ".join(f"{width:>6}" for width in self.widths),
        ]
        for depth, row in zip(self.depths, self.mean, strict=True):
            lines.append(f"{depth:>10}  " + "  ".join(f"{100 * score:6.2f}" for score in row))
        lines += ["", "Pareto-optimal sizes", "", "  layers  dimensions  Spearman  encoding  storage"]
        frontier = self.pareto()
        for depth, width, score in frontier[:MAX_LINES]:
            relative_cost = f"{depth / self.layers:>8.0%}  {width / self.dimensions:>7.0%}"
            lines.append(f"{depth:>8}  {width:>10}  {100 * score:8.2f}  {relative_cost}")
        if len(frontier) > MAX_LINES:
            lines.append(f"     and {len(frontier) - MAX_LINES} more")
        return "\n".join(lines)


def _is_no_larger(cell: tuple[int, int, float], other: tuple[int, int, float]) -> bool:
    return cell[0] <= other[0] and cell[1] <= other[1]


def evaluate_grid(config: EvaluateConfig, processes: PartialState | None = None) -> Grid:
    """Score every depth and width of a model on its tasks, and write the scores and a heat map.

    Args:
        config: the model, and what to measure it on.
        processes: as in `evaluate`.

    Raises:
        ConfigError, DataError: a model or a task that cannot be loaded, or an output folder that is not writable.

    """
    tasks = load_tasks(config, processes)
    encoder, folder = tasks.encoder, tasks.folder
    layers, dimensions = encoder.layer_selector.num_layers, encoder.dimensions
    depths = _resolve_sizes("ese_depths", config.ese_depths, layers, _default_depths(layers))
    widths = _resolve_sizes("ese_widths", config.ese_widths, dimensions, _default_widths(dimensions))
    scores = {
        name: EspressoGridEvaluator(corpus, depths, widths).scores(encode) for name, corpus, encode in tasks.pairs()
    }
    grid = Grid(depths, widths, layers, dimensions, scores, folder, encoder.embedding_config)
    if tasks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        _write(grid, config.model.name_or_path)
        write_durably(folder / "grid.png", heat_map(grid, config.model.name_or_path).png())
    return grid


def _resolve_sizes(setting: str, requested: list[int] | None, limit: int, default: list[int]) -> tuple[int, ...]:
    """Return the requested numbers, or the default, in ascending order.

    Raises:
        ConfigError: a number larger than the model has.

    """
    numbers = sorted(set(default if requested is None else requested))
    if numbers[-1] > limit:
        unit = "layers" if setting == "ese_depths" else "dimensions"
        raise ConfigError(f"{setting}={numbers} cannot work: the model has {limit} {unit}; choose from 1 to {limit}.")
    return tuple(numbers)


def _default_depths(layers: int) -> list[int]:
    step = -(-layers // MAX_DEPTHS)
    return list(range(layers, 0, -step))


def _default_widths(dimensions: int) -> list[int]:
    widths = [dimensions]
    width = MIN_WIDTH
    while width < dimensions:
        widths.append(width)
        width *= 2
    return widths


def _write(grid: Grid, model: str) -> None:
    content = {
        "model": model,
        "pooling": grid.embedding_config.pooling,
        "depths": grid.depths,
        "widths": grid.widths,
        "spearman_cosine": {task: scores.tolist() for task, scores in grid.scores.items()},
        "pareto": [
            {
                "layers": depth,
                "dimensions": width,
                "spearman_cosine": score,
                "relative_cost": {"encoding": depth / grid.layers, "storage": width / grid.dimensions},
            }
            for depth, width, score in grid.pareto()
        ],
    }
    write_durably(grid.folder / GRID_FILE, json.dumps(content, indent=2) + "\n")


def heat_map(grid: Grid, title: str) -> Figure:
    """Return a figure of the mean scores, with a frame around each cell whose score no smaller cell matches."""
    frontier = {(depth, width) for depth, width, _ in grid.pareto()}
    rows = [
        {"x": str(width), "y": str(depth), "score": round(100 * score, 2), "framed": (depth, width) in frontier}
        for depth, scores in zip(grid.depths, grid.mean.tolist(), strict=True)
        for width, score in zip(grid.widths, scores, strict=True)
    ]
    chart = figures.heat_map(
        rows,
        ("dimensions (framed: nothing smaller is as good)", [str(width) for width in grid.widths]),
        ("layers", [str(depth) for depth in grid.depths]),
        "Spearman correlation x 100",
    ).properties(title=f"{Path(title).name}: {', '.join(Path(task).name for task in grid.scores)}")
    return Figure("grid", "Spearman correlation by layers and dimensions", "", chart, rows)

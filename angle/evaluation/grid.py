"""The Pareto frontier of a model: every depth times every width of its embeddings, scored in one pass over the data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from angle.config import EvaluateConfig
from angle.errors import ConfigError
from angle.evaluation.evaluators.espresso_grid import EspressoGridEvaluator
from angle.evaluation.metrics import Floats
from angle.evaluation.tasks import GRID_FILE, load_tasks
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
    scores = {name: EspressoGridEvaluator(corpus, depths, widths).scores(encode) for name, corpus, encode in tasks}
    grid = Grid(depths, widths, layers, dimensions, scores, folder, encoder.embedding_config)
    if tasks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        _write(grid, config.model.name_or_path)
        heat_map(grid, folder / "grid.png", config.model.name_or_path)
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


def heat_map(grid: Grid, path: Path, title: str) -> None:
    """Draw the mean scores, with a frame around each cell whose score no smaller cell matches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = grid.mean.shape
    figure = Figure(figsize=(2.2 + 0.75 * columns, 1.6 + 0.42 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scores = 100 * grid.mean
    image = axes.imshow(scores, cmap="viridis", aspect="auto", origin="lower")
    middle = (scores.min() + scores.max()) / 2
    frontier = {(depth, width) for depth, width, _ in grid.pareto()}
    for row, depth in enumerate(grid.depths):
        for column, width in enumerate(grid.widths):
            colour = "white" if scores[row, column] < middle else "black"
            axes.text(column, row, f"{scores[row, column]:.1f}", ha="center", va="center", color=colour, fontsize=9)
            if (depth, width) in frontier:
                axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="red", lw=1.4))
    axes.set_xticks(range(columns), [str(width) for width in grid.widths])
    axes.set_yticks(range(rows), [str(depth) for depth in grid.depths])
    axes.set_xlabel("dimensions (framed: nothing smaller is as good)")
    axes.set_ylabel("layers")
    axes.set_title(f"{Path(title).name}: {', '.join(Path(task).name for task in grid.scores)}", fontsize=10)
    figure.colorbar(image, ax=axes, label="Spearman correlation x 100")
    figure.savefig(path, dpi=150)

"""MTEB by the package mteb: its tasks, its data and its way to keep results, with a model of this project."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from angle.config import EvaluateConfig
from angle.data.retrieval import check_templates, tokenize
from angle.errors import ConfigError, DataError, did_you_mean, first_line
from angle.evaluation.retrieval_results import short_names
from angle.evaluation.tasks import MTEB_FOLDER, load_tasks
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.encoder import Encoder
from angle.structures import Tokens
from angle.terminal import announce, clear_announcement

if TYPE_CHECKING:
    from accelerate import PartialState

#: Longest name of a task in the table.
NAME_COLUMNS = 40


@dataclass(frozen=True)
class MtebEvaluation:
    """The outcome of an evaluation by mteb."""

    scores: dict[str, tuple[str, float]]
    """The main score of each task, with its name."""
    folder: Path
    """Where mteb has put its results."""
    embedding_config: EmbeddingConfig
    """How texts reached the model, and how its states became embeddings."""

    @property
    def score(self) -> float:
        """Mean over all tasks of their main score."""
        return float(np.mean([score for _, score in self.scores.values()]))

    def __str__(self) -> str:
        """Return a table of the main scores, times 100."""
        names = short_names(list(self.scores), NAME_COLUMNS)
        width = max(map(len, (*names, "average")))
        measures = [measure for measure, _ in self.scores.values()]
        wide = max(map(len, (*measures, "measured by")))
        lines = [f"{'task':{width}}  {'measured by':{wide}}   score"]
        for name, (measure, score) in zip(names, self.scores.values(), strict=True):
            lines.append(f"{name:{width}}  {measure:{wide}}  {100 * score:6.2f}")
        if len(names) > 1:
            lines.append(f"{'average':{width}}  {'':{wide}}  {100 * self.score:6.2f}")
        return "\n".join(lines)

    @property
    def saved_files(self) -> str:
        """What was written, in words."""
        return f"{self.folder}, as mteb keeps results: a file for each task"


class MtebModel:
    """A model as mteb takes it: texts in, embeddings out, compared by cosine."""

    def __init__(self, encoder: Encoder, encode: Callable[[Tokens], Tensor], name: str, revision: str) -> None:
        """Take the encoder, a way to encode with it, perhaps in several processes, and what mteb shall call it."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self.tokenizer = encoder.tokenizer
        self.encode_tokens = encode
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision,
                "framework": ["PyTorch"],
                "embed_dim": encoder.dimensions,
                "max_tokens": encoder.tokenizer.max_length,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: object,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: object,
    ) -> npt.NDArray[np.float32]:
        """Return the embeddings (N, D) of texts.

        Args:
            inputs: batches, each with its texts as `text`.
            task_metadata: the task, which is of no account here, as are the split and the subset.
            hf_split: see above.
            hf_subset: see above.
            prompt_type: whether these are queries or documents; None: neither.

        """
        texts = [text for batch in inputs for text in batch["text"]]
        tokens = tokenize(self.tokenizer, texts, None if prompt_type is None else prompt_type.value)
        embeddings: npt.NDArray[np.float32] = self.encode_tokens(tokens).numpy()
        return embeddings

    def similarity(self, left: npt.ArrayLike, right: npt.ArrayLike) -> Tensor:
        """Return the cosines of all pairs."""
        return _unit(left) @ _unit(right).T

    def similarity_pairwise(self, left: npt.ArrayLike, right: npt.ArrayLike) -> Tensor:
        """Return the cosines of paired embeddings."""
        return (_unit(left) * _unit(right)).sum(dim=-1)


def _unit(embeddings: npt.ArrayLike) -> Tensor:
    vectors = torch.as_tensor(embeddings, dtype=torch.float32)
    return F.normalize(vectors.reshape(-1, vectors.shape[-1]), dim=-1)


def evaluate_mteb(config: EvaluateConfig, processes: PartialState | None = None) -> MtebEvaluation:
    """Let mteb measure a model on its tasks.

    Args:
        config: the model, and the names of tasks or benchmarks of mteb.
        processes: as in `angle.evaluation.report.evaluate`.

    Raises:
        ConfigError, DataError: mteb is not installed, or has no such task, or cannot load its data.

    """
    if importlib.util.find_spec("mteb") is None:
        raise ConfigError("suite=mteb needs the package mteb: type pip install -e '.[mteb]'.")
    assert config.tasks is not None
    announce("loading mteb")
    import mteb

    tasks = list(_tasks_of(config.tasks))
    loaded = load_tasks(config, processes)
    check_templates(loaded.encoder.tokenizer, "suite=mteb")
    results_folder = loaded.folder / MTEB_FOLDER
    cache = mteb.ResultCache(loaded.folder) if loaded.is_main else None
    name = config.model.name_or_path.rstrip("/")
    name = f"angle-hydra/{Path(name).resolve().name}" if Path(name).exists() or "/" not in name else name
    scores = {}
    for task in tasks:
        _load(task)
        clear_announcement()
        model = MtebModel(loaded.encoder, loaded.encode_of(task.metadata.name), name, config.model.revision or "local")
        outcome = mteb.evaluate(
            model,
            task,
            cache=cache,
            encode_kwargs={"batch_size": config.batch_size},
            show_progress_bar=False,
            co2_tracker=False,
        )
        (result,) = outcome.task_results
        scores[task.metadata.name] = task.metadata.main_score, float(result.get_score())
    return MtebEvaluation(scores, results_folder, loaded.encoder.embedding_config)


def _tasks_of(names: Sequence[str]) -> Iterator[Any]:
    """Yield the tasks that names of tasks and of benchmarks stand for.

    Raises:
        ConfigError: mteb knows no such name.

    """
    import mteb

    benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
    for name in names:
        if name in benchmarks:
            yield from benchmarks[name].tasks
            continue
        try:
            yield mteb.get_task(name)
        except KeyError:
            known = [*benchmarks, *(task.metadata.name for task in mteb.get_tasks())]
            hint = did_you_mean(name, known) or "."
            raise ConfigError(
                f"tasks={name} is no task and no benchmark of mteb {mteb.__version__}{hint} "
                f"mteb available-tasks and mteb available-benchmarks list them."
            ) from None


def _load(task: Any) -> None:
    """Raise DataError if a task's data cannot be loaded."""
    announce(f"reading {task.metadata.name}")
    try:
        task.load_data()
    except (OSError, ValueError, RuntimeError) as error:  # as for the hub's other data
        raise DataError(
            f"tasks={task.metadata.name}: mteb could not load its data: {first_line(error)}. Check the connection, or "
            f"leave the task out."
        ) from None

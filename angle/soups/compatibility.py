"""What runs must have in common for the mean of their weights to be a model, and their scores to be comparable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from angle.errors import ConfigError, brief
from angle.modeling.adapters import find_adapters
from angle.modeling.embedding_config import read_embedding_config
from angle.modeling.locations import ADAPTER_FILE, read_json_object
from angle.modeling.tokenizer_files import TOKENIZER_FILE
from angle.modeling.weight_files import ADAPTER_WEIGHT_FILES, fingerprint
from angle.soups.adapters import check_summable, read_factor_infos
from angle.soups.ingredients import NAMED, Ingredient
from angle.soups.weights import check_equal_tensors, read_tensor_infos

#: Entries of config.json that say who wrote it, and of tokenizer.json that the last call left there.
OF_THE_WRITER = ("transformers_version", "_name_or_path", "architectures")
OF_THE_CALL = ("truncation", "padding")
#: What a run is measured on.
VALIDATION = ("valid", "valid_sts", "valid_retrieval")
#: Characters of a hash that a message shows.
SHOWN = 12
#: Where scores are compared, which those of a uniform soup are not.
OR_UNIFORM = "Only equal ones make scores comparable, so type --method uniform, or"


def check_compatible(ingredients: Sequence[Ingredient]) -> None:
    """Check that the weights of runs have a mean, and that it is used as they are.

    Raises:
        ConfigError: two runs differ in their architecture, tokenizer, settings of embeddings, or base of adapters.

    """
    first = ingredients[0]
    for other in ingredients[1:]:
        if first.has_adapters != other.has_adapters:
            kinds = ["an adapter" if each.has_adapters else "all weights" for each in (first, other)]
            raise _differ(first, other, "what they trained", kinds)
        if first.has_adapters:
            check_same_start(first, other, "adapters are updates of one model")
            _check_same_frozen(first, other)
        for file, ignored in (("config.json", OF_THE_WRITER), (TOKENIZER_FILE, OF_THE_CALL)):
            for name, a, b in _differences(_entries(first, file, ignored), _entries(other, file, ignored)):
                raise _differ(first, other, f"{name} of {file}", (a, b))
        settings = [dataclasses.asdict(read_embedding_config(str(each.model))) for each in (first, other)]
        for name, a, b in _differences(*settings):
            raise _differ(first, other, f"{name} of how texts become embeddings", (a, b))
    for each in ingredients:
        if each.has_adapters:
            check_summable(each.model)
    infos = [read_factor_infos(each.model) if each.has_adapters else read_tensor_infos(each.model)
             for each in ingredients]  # fmt: skip
    for other, tensors in zip(ingredients[1:], infos[1:], strict=True):
        check_equal_tensors(infos[0], tensors, f"{first.name} and {other.name}")


def check_same_start(first: Ingredient, other: Ingredient, reason: str) -> None:
    """Check that two runs started from the same weights.

    Raises:
        ConfigError: they did not, or it is not known.

    """
    if first.started_from is None or first.started_from != other.started_from:
        starts = [_shown(each.started_from or None) for each in (first, other)]
        raise _differ(first, other, f"the weights that they started from ({reason})", starts)
    names = [each.config.model.name_or_path for each in (first, other)]
    if not first.started_from and names[0] != names[1]:  # of the built-in model there are no files
        raise _differ(first, other, f"model.name_or_path ({reason})", names)


def started_from_the_same(ingredients: Sequence[Ingredient]) -> bool:
    """Return whether all runs started from the same weights."""
    try:
        for other in ingredients[1:]:
            check_same_start(ingredients[0], other, "")
    except ConfigError:
        return False
    return True


def check_same_validation(ingredients: Sequence[Ingredient]) -> None:
    """Check that all runs were measured on the same validation rows by the same metric.

    Raises:
        ConfigError: they were not, or one was not measured.

    """
    first = ingredients[0]
    for each in ingredients:
        if each.metric is None or each.score is None:
            raise ConfigError(
                f"{each.name} was not measured on validation rows, by which a greedy soup chooses: leave it out, or "
                f"type --method uniform."
            )
    for other in ingredients[1:]:
        metrics = [each.result["best_metric"] for each in (first, other)]
        if metrics[0] != metrics[1]:
            raise _differ(first, other, "train.best_metric", metrics, OR_UNIFORM)
        for purpose in VALIDATION:
            rows = [_shown(each.record.get("data", {}).get(purpose)) for each in (first, other)]
            if rows[0] != rows[1]:
                raise _differ(first, other, f"the rows of data.{purpose} (by their hash)", rows, OR_UNIFORM)


def have_same_validation(ingredients: Sequence[Ingredient]) -> bool:
    """Return whether all runs were measured on the same validation rows by the same metric, or by none."""
    records = [each.record.get("data", {}) for each in ingredients]
    measured = [
        (each.result["best_metric"], *(data.get(purpose) for purpose in VALIDATION))
        for each, data in zip(ingredients, records, strict=True)
    ]
    return len(set(measured)) == 1 and any(measured[0][1:])


def have_same_test(ingredients: Sequence[Ingredient]) -> bool:
    """Return whether all runs have the same test rows."""
    rows = {each.record.get("data", {}).get("test") for each in ingredients}
    return len(rows) == 1 and None not in rows


def _check_same_frozen(first: Ingredient, other: Ingredient) -> None:
    """Check that the adapters that were frozen beneath the trained ones are the same."""
    a, b = (
        [_described_adapter(Path(folder)) for folder in find_adapters(str(each.model), NAMED).folders[:-1]]
        for each in (first, other)
    )
    if a != b:
        shown = (", ".join(each) or "none" for each in (a, b))
        raise _differ(first, other, "the adapters that were frozen beneath theirs", list(shown))


def _described_adapter(folder: Path) -> str:
    """Return the hash of an adapter's weights and its scaling; its file may list the same layers in another order."""
    weights = [folder / name for name in ADAPTER_WEIGHT_FILES if (folder / name).is_file()]
    config = read_json_object(str(folder), ADAPTER_FILE) or {}
    scaling = ", ".join(f"{name} {config.get(name)}" for name in ("r", "lora_alpha", "use_rslora"))
    return f"{_shown(fingerprint(weights))} ({scaling})"


def _entries(ingredient: Ingredient, file: str, ignored: Sequence[str]) -> dict[str, Any]:
    content = read_json_object(str(ingredient.model), file) or {}
    return {name: value for name, value in content.items() if name not in ignored}


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield each entry that differs, with both values."""
    for name in [*first, *(name for name in other if name not in first)]:
        a, b = first.get(name), other.get(name)
        if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            yield name, brief(a), brief(b)


def _shown(found: Any) -> str:
    """Return a hash, or several by their names, as a message shows them."""
    if isinstance(found, Mapping):
        return ", ".join(f"{name} {value[:SHOWN]}" for name, value in found.items())
    return "none" if found is None else str(found)[:SHOWN]


def _differ(
    first: Ingredient, other: Ingredient, what: str, values: Sequence[object], hint: str = "A soup needs the same, so"
) -> ConfigError:
    a, b = values
    return ConfigError(f"{first.name} and {other.name} differ in {what}: {a} and {b}. {hint} leave one out.")

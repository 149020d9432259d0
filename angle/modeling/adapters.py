"""LoRA: train new or saved adapters on top of frozen ones, and merge all of them into the weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.config import LoraConfig
from angle.errors import ConfigError, brief, first_line
from angle.modeling.buffers import running_statistics
from angle.modeling.linear_layers import NUM_TOKENS, find_linear_layers, shortest_endings
from angle.modeling.locations import ADAPTER_FILE
from angle.modeling.quantization import import_bitsandbytes
from angle.modeling.weight_files import ADAPTER_WEIGHT_FILES

if TYPE_CHECKING:
    import peft
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

#: peft's name for the adapter that is trained, which is saved at the top of a folder. Frozen ones go in subfolders.
TRAINED, FROZEN = "default", "frozen-{}"

#: The prefix that peft adds to the name of every weight.
PREFIX = "base_model.model."

#: The rank up to which adapters are small, whatever the width of layers.
HARMLESS_RANK = 1024
#: What entries of an adapter's file that hold names of layers must be.
ENTRY_TYPES = {"rank_pattern": dict, "alpha_pattern": dict, "modules_to_save": list, "layers_pattern": str | list}
#: Expressions that are matched in no time: a name, perhaps with anything before and behind it.
SIMPLE_PATTERN = re.compile(r"(\.\*)?[\w.]*(\.\*)?")
#: Seconds that it may take to match an adapter's expressions with the names of all layers.
PATTERN_SECONDS = 10
#: Matches in a process of its own: nothing else can stop `re`, which peft uses, while it searches.
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name)
"""


@dataclass(frozen=True)
class SavedAdapters:
    """A saved adapter, and those that were frozen beneath it."""

    setting: str
    """What the user typed, for messages."""
    folders: tuple[str, ...]
    """The topmost last."""


def find_adapters(name: str, setting: str, revision: str | None = None) -> SavedAdapters:
    """Return the adapters in a folder or a repository, downloaded if need be.

    Raises:
        ConfigError: there are none.

    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        patterns = ["adapter_*", f"{FROZEN.format('*')}/adapter_*"]
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            raise ConfigError(f"{setting}={name} could not be fetched: {first_line(error)}.") from None
    if not (folder / ADAPTER_FILE).is_file():
        raise ConfigError(f"{setting}={name} is not an adapter: it has no {ADAPTER_FILE}.")
    numbers = [path.name.rpartition("-")[2] for path in folder.glob(FROZEN.format("*"))]
    frozen = [folder / FROZEN.format(number) for number in sorted((n for n in numbers if n.isdecimal()), key=int)]
    return SavedAdapters(f"{setting}={name}", tuple(str(path) for path in (*frozen, folder)))


def add_adapters(
    backbone: PreTrainedModel,
    base_name: str,
    revision: str | None = None,
    *,
    saved_adapters: SavedAdapters | None = None,
    new_config: LoraConfig | None = None,
    max_length: int = NUM_TOKENS,
) -> PeftModel:
    """Return the model with adapters on it, of which the topmost alone is trainable.

    Args:
        backbone: the model, without adapters.
        base_name: where the model comes from; written into the adapter's folder.
        revision: the revision of `base_name` on the hub.
        saved_adapters: adapters to start from: trained further, or frozen below a new one if `new_config` is given.
        new_config: settings of a new adapter, whose initial weights change nothing.
        max_length: tokens of the longest text that a new adapter is trained on.

    Raises:
        ConfigError: target modules match no linear layer, or a saved adapter does not fit the model.

    """
    import_bitsandbytes()  # before peft does
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a name in transformers that will change
        backbone.name_or_path = base_name
        new_peft_config = None if new_config is None else _peft_config(backbone, new_config, max_length)
        model: Any = backbone
        folders = () if saved_adapters is None else saved_adapters.folders
        for number, folder in enumerate(folders):
            is_trained = new_config is None and number == len(folders) - 1
            assert saved_adapters is not None
            model = _add_saved_adapter(
                model, folder, TRAINED if is_trained else FROZEN.format(number), saved_adapters.setting
            )
        if new_peft_config is not None:
            try:
                model = _add_adapter(model, new_peft_config, TRAINED)
            except Exception as error:  # peft's reasons are many: a layer that it cannot adapt, a tied one, ...
                reason = first_line(error).partition(". ")[0].removesuffix(".")
                names = ", ".join(sorted(new_peft_config.target_modules or ()))
                raise ConfigError(
                    f"lora.enabled=true cannot work with {type(backbone).__name__}: {reason}; choose others of its "
                    f"layers ({names}) by lora.target_modules=[...], or type lora=none."
                ) from error
        model.base_model.set_adapter(list(model.peft_config))
        for config in model.peft_config.values():
            config.revision = revision
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name and f".{TRAINED}." in name)
        return model


def merge_adapters(backbone: PreTrainedModel, saved_adapters: SavedAdapters) -> PreTrainedModel:
    """Return the model with saved adapters merged into its weights."""
    model = add_adapters(backbone, backbone.name_or_path, saved_adapters=saved_adapters)
    _separate_shared_weights(model)
    merged: PreTrainedModel = model.merge_and_unload(adapter_names=list(model.peft_config))
    return merged.requires_grad_(True)


def _separate_shared_weights(model: PeftModel) -> None:
    """Give layers with adapters weights of their own: merged into shared ones (Zamba), they would change others."""
    import torch
    from peft.tuners.lora import LoraLayer

    owners = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        layer, name = module.get_base_layer(), getattr(module, "parameter_name", "weight")  # experts have others
        weight = getattr(layer, name)
        if owners[id(weight)] > 1:
            setattr(layer, name, torch.nn.Parameter(weight.detach().clone(), requires_grad=False))


def save_adapters(model: PeftModel, folder: Path, weights: dict[str, Tensor] | None = None, *, is_llm: bool) -> None:
    """Write the adapters, the trained one at the top of a folder, those frozen beneath it into subfolders.

    Args:
        model: the model with its adapters.
        folder: where to write them.
        weights: the adapters' weights; None for those in the model.
        is_llm: whether the model is a decoder, which others load with a language model's head around it.

    """
    # The base's embeddings are not part of an adapter; to find that out, peft would look for the base.
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a card of blanks
    if is_llm:
        _name_as_in_language_model(folder, model.get_base_model().base_model_prefix)


def _name_as_in_language_model(folder: Path, inner: str) -> None:
    """Write every weight of adapters once more, under its name in the class with a language model's head.

    peft finds weights by their full names, and passes over others with no more than a warning: with one of the two
    names, an adapter would leave either `AutoModel` or `AutoModelForCausalLM`, which angle_emb loads, as it was.
    """
    from safetensors.torch import load, save_file

    for path in folder.rglob(ADAPTER_WEIGHT_FILES[0]):
        weights = load(path.read_bytes())
        renamed = {f"{PREFIX}{inner}.{key.removeprefix(PREFIX)}": weight.clone() for key, weight in weights.items()}
        save_file(weights | renamed, path, {"format": "pt"})


@contextmanager
def disable_trained_adapter(model: Any) -> Iterator[None]:
    """Disable the adapter being trained: if it was new, the model is then what it was before training."""
    from peft.tuners.lora import LoraLayer

    scalings = [
        module.scaling for module in model.modules() if isinstance(module, LoraLayer) and TRAINED in module.scaling
    ]
    original = [scaling[TRAINED] for scaling in scalings]
    for scaling in scalings:
        scaling[TRAINED] = 0.0
    try:
        yield
    finally:
        for scaling, value in zip(scalings, original, strict=True):
            scaling[TRAINED] = value


def _peft_config(backbone: PreTrainedModel, config: LoraConfig, max_length: int) -> peft.LoraConfig:
    """Return peft's settings of a new adapter."""
    import peft
    from transformers.pytorch_utils import Conv1D

    if statistics := running_statistics(backbone):
        raise ConfigError(
            f"lora.enabled=true cannot work with {type(backbone).__name__}, which gathers statistics as it is trained "
            f"({statistics[0]}) that are not saved with adapters: type lora=none, or choose another model."
        )
    linear = find_linear_layers(backbone, max_length)
    if not linear:
        raise ConfigError(
            f"lora.enabled=true cannot work with {type(backbone).__name__}, which has no linear layers that "
            f"adapters could be put on: type lora=none, or choose another model."
        )
    widest = max(max(backbone.get_submodule(name).weight.shape) for name in linear)
    if config.r > max(widest, HARMLESS_RANK):
        raise ConfigError(
            f"lora.r={config.r:,} cannot work: the widest layer has {widest:,} dimensions, beyond which a rank adds "
            f"nothing but memory; 8 to 64 are usual."
        )
    names = sorted({name.rsplit(".", 1)[-1] for name in linear})
    unknown = set(config.target_modules or ()) - set(names)
    if unknown:
        raise ConfigError(
            f"lora.target_modules={config.target_modules} names {', '.join(sorted(unknown))}, which "
            f"this model does not have. Its linear layers are: {', '.join(names)}."
        )
    if config.target_modules:
        linear = [name for name in linear if name.rsplit(".", 1)[-1] in config.target_modules]
    return peft.LoraConfig(
        task_type=peft.TaskType.FEATURE_EXTRACTION,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=shortest_endings(backbone, linear),
        fan_in_fan_out=any(isinstance(backbone.get_submodule(name), Conv1D) for name in linear),
    )


def _add_adapter(model: Any, config: peft.LoraConfig, name: str) -> Any:
    """Return the model with one more adapter, called `name`, whose weights are initialised."""
    import peft

    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
        return model
    return peft.get_peft_model(model, config, adapter_name=name)


def _add_saved_adapter(model: Any, folder: str, name: str, setting: str) -> Any:
    """Return the model with one saved adapter, called `name`, all of whose weights match a layer.

    Args:
        model: the model, with or without other adapters.
        folder: the saved adapter.
        name: peft's name for it.
        setting: what the user typed, for messages.

    """
    import peft

    backbone = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    config, weights = _read_saved_adapter(folder, setting, backbone.base_model_prefix)
    config.base_model_name_or_path = backbone.name_or_path
    _check_patterns(config, backbone, setting)
    try:
        model = _add_adapter(model, config, name)
    except Exception as error:  # none of the target modules exists, or what is there cannot be adapted
        raise ConfigError(f"{setting} does not fit {type(backbone).__name__}: {first_line(error)}.") from error
    expected = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    expected = {key.removeprefix(PREFIX): weight for key, weight in expected.items()}
    mismatched = sorted(weights.keys() ^ expected.keys())
    mismatched += [key for key in weights if key in expected and weights[key].shape != expected[key].shape]
    if mismatched:
        raise ConfigError(
            f"{setting} does not fit {type(backbone).__name__}: {len(mismatched)} of its weights and layers "
            f"have no counterpart of their shape, {mismatched[0]} for one. Choose the model that it was made for."
        )
    # Not by peft, which would rename them as transformers renames the weights of older checkpoints, and lose some.
    for key, weight in weights.items():
        expected[key].copy_(weight)  # shares the memory of the model's
    return model


def _check_patterns(config: peft.LoraConfig, backbone: PreTrainedModel, setting: str) -> None:
    """Check that matching the expressions of a saved adapter comes to an end.

    Raises:
        ConfigError: it does not in `PATTERN_SECONDS`.

    """
    whole = [pattern for pattern in (config.target_modules, config.exclude_modules) if isinstance(pattern, str)]
    ends = [*(config.rank_pattern or ()), *(config.alpha_pattern or ()), *(config.modules_to_save or ())]
    ends += [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern or []
    patterns = [pattern for pattern in whole if not SIMPLE_PATTERN.fullmatch(pattern)]
    patterns += [rf"(.*\.)?({end})(\..*)?" for end in map(str, ends) if not SIMPLE_PATTERN.fullmatch(end)]
    if not patterns:
        return
    names = [name for name, _ in backbone.named_modules()]
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH],
            input=json.dumps([patterns, names]),
            text=True,
            capture_output=True,
            timeout=PATTERN_SECONDS,
        )  # what is no expression is reported by peft
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{setting} cannot be used: matching its expressions, such as {brief(patterns[0])}, with the names of "
            f"layers does not end; list the layers' names as target_modules in its {ADAPTER_FILE} instead."
        ) from None


def _read_saved_adapter(folder: str, setting: str, model_prefix: str) -> tuple[peft.LoraConfig, dict[str, Tensor]]:
    """Return a saved adapter's settings and weights, with the module names of a model without a head.

    An adapter made on a class with a head has the name of the model inside that class, such as "model", in its keys;
    ours have both. Embeddings need no head.
    """
    import peft
    from peft.utils import load_peft_weights

    try:
        config = peft.PeftConfig.from_pretrained(folder)
    except Exception as error:  # whatever a damaged file leads to in there
        raise ConfigError(f"{setting} could not be read: {first_line(error)}.") from error
    if not isinstance(config, peft.LoraConfig):
        peft_type = str(config.peft_type).rsplit(".", 1)[-1]
        raise ConfigError(f"{setting} is an adapter of type {peft_type}, but only LoRA adapters can be read.")
    for entry, expected in ENTRY_TYPES.items():
        if not isinstance(value := getattr(config, entry), expected | None):
            raise ConfigError(f"{setting} could not be read: {entry}={brief(value)} has the wrong type.")
    if not isinstance(config.lora_alpha, int | float) or not config.lora_alpha > 0:
        raise ConfigError(f"{setting} could not be read: lora_alpha={brief(config.lora_alpha)} is no number above 0.")
    for name in ADAPTER_WEIGHT_FILES:
        if (file := Path(folder, name)).exists() and not file.is_file():  # reading a pipe would wait for ever
            raise ConfigError(f"{setting} could not be read: {name} is no file.")
    try:
        state_dict = load_peft_weights(folder, device="cpu")  # a .bin file with weights_only=True
        damaged = [k for k, w in state_dict.items() if not (w.is_floating_point() and w.isfinite().all())]
    except Exception as error:  # whatever a damaged file leads to in there
        raise ConfigError(f"{setting} could not be read: {first_line(error)}.") from None
    if damaged:
        raise ConfigError(
            f"The weights of {setting} are damaged: {damaged[0]} has values that are no finite numbers, or integers; "
            f"copy or download the adapter again."
        )
    inner, head = f"{model_prefix}.", "lm_head"
    weights: dict[str, Tensor] = {}
    for key, weight in state_dict.items():
        if key.startswith(f"{PREFIX}{head}."):
            continue
        name = key.removeprefix(PREFIX).removeprefix(inner)
        if name in weights and not weight.equal(weights[name]):
            raise ConfigError(
                f"{setting} has two weights for {name}, with and without {inner} in their names, that differ: save the "
                f"adapter again."
            )
        weights[name] = weight
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    largest = max((size for weight in weights.values() for size in weight.shape), default=0)
    too_large = [rank for rank in ranks if isinstance(rank, int) and rank > largest]
    if too_large:  # refused before peft makes room for it
        raise ConfigError(
            f"{setting} could not be read: its {ADAPTER_FILE} has the rank {too_large[0]:,}, but its weights have not."
        )
    if isinstance(config.target_modules, set):
        config.target_modules = {target.removeprefix(inner) for target in config.target_modules - {head}}
    for pattern in ("alpha_pattern", "rank_pattern"):
        by_layer = {key.removeprefix(inner): value for key, value in getattr(config, pattern).items()}
        setattr(config, pattern, by_layer)
    config.task_type = peft.TaskType.FEATURE_EXTRACTION
    config.inference_mode = False
    return config, weights

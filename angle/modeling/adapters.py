"""LoRA: train fresh or saved adapters on top of frozen ones, and merge all of them into the weights."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.config import LoraConfig
from angle.errors import ConfigError, first_line
from angle.modeling.description import ADAPTER_FILE
from angle.modeling.quantization import quiet_bitsandbytes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: peft's name for the adapter that is trained, which is saved at the top of a folder. Frozen ones go in subfolders.
TRAINED, FROZEN = "default", "frozen-{}"

#: The prefix that peft adds to the name of every weight.
PREFIX = "base_model.model."


@dataclass(frozen=True)
class SavedAdapters:
    """Adapters that were found."""

    setting: str
    """What the user typed, for messages."""
    folders: tuple[str, ...]
    """Topmost last."""


def find_adapters(name: str, setting: str, revision: str | None = None) -> SavedAdapters:
    """Return the adapters in a folder or a repository, downloaded if need be.

    Raises:
        ConfigError: there are none.

    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        wanted = ["adapter_*", f"{FROZEN.format('*')}/adapter_*"]
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            raise ConfigError(f"{setting}={name} could not be fetched: {first_line(error)}.") from None
    if not (folder / ADAPTER_FILE).is_file():
        raise ConfigError(f"{setting}={name} is no adapter: it has no {ADAPTER_FILE}.")
    frozen = sorted(folder.glob(FROZEN.format("*")), key=lambda path: int(path.name.rsplit("-", 1)[-1]))
    return SavedAdapters(f"{setting}={name}", tuple(str(place) for place in (*frozen, folder)))


def add_adapters(
    backbone: PreTrainedModel,
    base_name: str,
    *,
    revision: str | None = None,
    saved: SavedAdapters | None = None,
    fresh: LoraConfig | None = None,
) -> PeftModel:
    """Return the model with adapters on it; nothing but one of them is trainable.

    Args:
        backbone: the bare model.
        base_name: where the model comes from; written into the adapter's folder.
        revision: the revision of `base_name` on the hub.
        saved: adapters to start from: trained further, or frozen below `fresh` if that is given.
        fresh: a new adapter, initialised so that it changes nothing.

    Raises:
        ConfigError: target modules match no linear layer, or a saved adapter does not fit the model.

    """
    quiet_bitsandbytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a name in transformers that will change
        backbone.name_or_path = base_name
        settings = None if fresh is None else _settings(backbone, fresh)
        model: Any = backbone
        folders = () if saved is None else saved.folders
        for number, folder in enumerate(folders):
            last = fresh is None and number == len(folders) - 1
            assert saved is not None
            model = _add_saved(model, folder, TRAINED if last else FROZEN.format(number), saved.setting)
        if settings is not None:
            model = _add(model, settings, TRAINED)
        model.base_model.set_adapter(list(model.peft_config))
        for config in model.peft_config.values():
            config.revision = revision
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name and f".{TRAINED}." in name)
        return model


def merge_adapters(backbone: PreTrainedModel, saved: SavedAdapters) -> PreTrainedModel:
    """Return the model with saved adapters merged into its weights."""
    model = add_adapters(backbone, backbone.name_or_path, saved=saved)
    merged: PreTrainedModel = model.merge_and_unload(adapter_names=list(model.peft_config))
    return merged.requires_grad_(True)


@contextmanager
def without_trained(model: Any) -> Iterator[None]:
    """Disable the adapter being trained: if it started fresh, the model is then what it was before training."""
    from peft.tuners.lora import LoraLayer

    scalings = [
        module.scaling for module in model.modules() if isinstance(module, LoraLayer) and TRAINED in module.scaling
    ]
    before = [scaling[TRAINED] for scaling in scalings]
    for scaling in scalings:
        scaling[TRAINED] = 0.0
    try:
        yield
    finally:
        for scaling, value in zip(scalings, before, strict=True):
            scaling[TRAINED] = value


def _settings(backbone: PreTrainedModel, config: LoraConfig) -> Any:
    """Return peft's settings for a fresh adapter."""
    import peft
    import torch

    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    }
    unknown = set(config.target_modules or ()) - linear
    if unknown:
        raise ConfigError(
            f"lora.target_modules={config.target_modules} names {', '.join(sorted(unknown))}, which "
            f"this model does not have. Its linear layers are: {', '.join(sorted(linear))}."
        )
    return peft.LoraConfig(
        task_type=peft.TaskType.FEATURE_EXTRACTION,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(config.target_modules or linear),
        exclude_modules=r".*pooler.*" if hasattr(backbone, "pooler") else None,
    )


def _add(model: Any, settings: Any, name: str) -> Any:
    import peft

    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, settings)
        return model
    return peft.get_peft_model(model, settings, adapter_name=name)


def _add_saved(model: Any, place: str, name: str, typed: str) -> Any:
    """Return the model with one saved adapter, all of whose weights match a layer."""
    import peft
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    settings = peft.PeftConfig.from_pretrained(place)
    if not isinstance(settings, peft.LoraConfig):
        kind = str(settings.peft_type).rsplit(".", 1)[-1]
        raise ConfigError(f"{typed} is a {kind} adapter, but only LoRA adapters can be read.")
    try:
        found = load_peft_weights(place, device="cpu")  # a .bin file with weights_only=True
    except (OSError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ConfigError(f"{typed} could not be read: {first_line(error)}.") from None
    backbone = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    # An adapter made on a class with a head prefixes its keys with the bare model's name. Embeddings need no head.
    inside, head = f"{backbone.base_model_prefix}.", "lm_head"
    weights = {
        key.removeprefix(PREFIX).removeprefix(inside): weight
        for key, weight in found.items()
        if not key.startswith(f"{PREFIX}{head}.")
    }
    if isinstance(settings.target_modules, set):
        settings.target_modules = {target.removeprefix(inside) for target in settings.target_modules - {head}}
    for pattern in ("alpha_pattern", "rank_pattern"):
        inner = {key.removeprefix(inside): value for key, value in getattr(settings, pattern).items()}
        setattr(settings, pattern, inner)
    settings.task_type = peft.TaskType.FEATURE_EXTRACTION
    settings.base_model_name_or_path = backbone.name_or_path
    settings.inference_mode = False
    try:
        model = _add(model, settings, name)
    except ValueError as error:  # none of the target modules exists
        raise ConfigError(f"{typed} does not fit {type(backbone).__name__}: {error}") from None
    wanted = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    wanted = {key.removeprefix(PREFIX): weight for key, weight in wanted.items()}
    strange = sorted(weights.keys() ^ wanted.keys())
    strange += [key for key in weights if key in wanted and weights[key].shape != wanted[key].shape]
    if strange:
        raise ConfigError(
            f"{typed} does not fit {type(backbone).__name__}: {len(strange)} of its weights and layers "
            f"have no counterpart of their shape, {strange[0]} for one. Choose the model that it was made for."
        )
    peft.set_peft_model_state_dict(model, {PREFIX + key: weight for key, weight in weights.items()}, adapter_name=name)
    return model

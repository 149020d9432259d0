"""Where a model comes from: its weights, its tokenizer, and what it says of itself."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angle.config import RUN_FILE, START_INDEX_VARIABLE, ModelConfig
from angle.errors import ConfigError
from angle.modeling.packing import first_position, position_table
from angle.modeling.quantization import loading_options, own_device
from angle.modeling.tokenizer import CONTRACT_FILE, DEFAULT_MAX_LENGTH, TextTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = "tiny"
ADAPTER_FILE = "adapter_config.json"
#: Pooling modes of sentence-transformers by our names.
SENTENCE_TRANSFORMERS_POOLING = {"cls": "cls", "avg": "mean", "max": "max", "last": "lasttoken"}


@dataclasses.dataclass(frozen=True)
class SelfDescription:
    """What a model folder or repository says of how to use it; None where it says nothing."""

    pooling: str | None = None
    max_length: int | None = None
    prompt: str | None = None
    padding_side: str | None = None
    bidirectional_from: int | None = None
    load_kbit: int | None = None
    problem: str | None = None
    """Why its pooling is not known, when it should be; nothing is lost where settings give one."""


def locate(name_or_path: str) -> str:
    """Return the model folder inside a run folder (its best model, else the final one), or the name as it is.

    Raises:
        ConfigError: a run folder without a model, or a path that does not exist.

    """
    path = Path(name_or_path)
    if (path / RUN_FILE).is_file():
        for inside in ("best", "final"):
            if (path / inside).is_dir():
                return str(path / inside)
        raise ConfigError(
            f"model.name_or_path={name_or_path} is a run folder without a model yet: finish it with "
            f"python train.py train.resume={name_or_path}"
        )
    looks_like_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_like_path and not path.exists():
        raise ConfigError(
            f"model.name_or_path={name_or_path} does not exist: give a folder with weights, a run folder or a hub name."
        )
    return name_or_path


def adapter_base(name_or_path: str, revision: str | None = None) -> str | None:
    """Return the model that the adapter at this place was made for, None when it is no adapter."""
    try:
        adapter = read_json(name_or_path, ADAPTER_FILE, revision)
    except OSError:  # without its configuration in the cache, an adapter could not be loaded anyway
        return None
    return None if adapter is None else str(adapter["base_model_name_or_path"])


def read_json(name_or_path: str, filename: str, revision: str | None = None) -> Any:
    """Return the parsed JSON file of a model folder or hub repository, None when it has no such file.

    Raises:
        OSError: the hub cannot be reached, so that nobody knows.

    """
    if name_or_path == TINY:
        return None
    folder = Path(name_or_path)
    if folder.is_dir():
        path: Path | None = folder / filename
    else:
        path = _hub_file(name_or_path, filename, revision)
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None


def _hub_file(name: str, filename: str, revision: str | None) -> Path | None:
    """Return where a repository's file is in the cache, fetched if need be; None when it has no such file."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, filename, revision=revision))
    except LocalEntryNotFoundError as error:
        known = try_to_load_from_cache(name, filename, revision=revision)
        if known is not None and not isinstance(known, str):
            return None  # the hub said so when it was asked before
        raise OSError(f"{name} has no {filename} in the cache, and the hub cannot be reached") from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None  # a repository that is not there or not open is named when its weights are loaded


def describe(name_or_path: str, revision: str | None = None) -> SelfDescription:
    """Return what a model says of itself: in our contract, or as a sentence-transformers folder.

    Raises:
        ConfigError: a description that this version cannot follow.

    """
    if name_or_path == TINY:
        return SelfDescription(pooling="avg")
    try:
        return _describe(name_or_path, revision)
    except OSError:
        return SelfDescription(
            problem=f"How {name_or_path} pools could not be asked: the hub cannot be reached, and its description is "
            f"not in the cache. Go online once, or type pooling=avg, pooling=cls or pooling=last."
        )


def _describe(name_or_path: str, revision: str | None) -> SelfDescription:
    contract = read_json(name_or_path, CONTRACT_FILE, revision)
    if contract is not None:
        start = contract.get("bidirectional_from")
        if contract.get("apply_billm"):  # of the reference, which keeps the start index in the environment only
            start = int(os.environ.get(START_INDEX_VARIABLE, "0"))
        pooling = contract.get("pooling", contract.get("pooling_strategy"))  # the second is the reference's name
        return SelfDescription(
            None if pooling is None else str(pooling),
            contract.get("max_length"),
            contract.get("prompt"),
            contract.get("padding_side"),
            None if start is None or start < 0 else int(start),
            contract.get("load_kbit"),
        )
    modules = read_json(name_or_path, "modules.json", revision)
    if modules is None:
        return SelfDescription()
    return _describe_sentence_transformers(name_or_path, modules, revision)


def _describe_sentence_transformers(name: str, modules: list[dict[str, Any]], revision: str | None) -> SelfDescription:
    pooling = problem = None
    for module in modules:
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Pooling":
            settings = read_json(name, f"{module['path']}/config.json", revision) or {}
            modes = [
                key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
                for key, value in settings.items()
                if key.startswith("pooling_mode_") and value is True
            ]
            modes = modes or [str(settings.get("pooling_mode"))]
            ours = {theirs: our for our, theirs in SENTENCE_TRANSFORMERS_POOLING.items()}
            if len(modes) != 1 or modes[0] not in ours:
                problem = (
                    f"{name} pools by {' + '.join(modes)}, which has no name here: type pooling.strategy=... to "
                    f"choose another."
                )
            else:
                pooling = ours[modes[0]]
        elif kind not in ("Transformer", "Normalize"):
            raise ConfigError(
                f"{name} has a {kind} module after its pooling, which this project does not run: its "
                f"embeddings would be other ones."
            )
    settings = read_json(name, "sentence_bert_config.json", revision) or {}
    prompts = read_json(name, "config_sentence_transformers.json", revision) or {}
    prefix = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"))
    escaped = prefix.replace("{", "{{").replace("}", "}}") if prefix else None
    prompt = f"{escaped}{{text}}" if escaped else None
    return SelfDescription(pooling, settings.get("max_seq_length"), prompt, problem=problem)


def load_tokenizer(config: ModelConfig, name: str, said: SelfDescription, backbone_limit: int | None) -> TextTokenizer:
    """Return the tokenizer of a model, under the contract that settings and the model's own words give.

    Args:
        config: settings that are given win over what the model says.
        name: the model's located folder or hub name.
        said: what the model says of itself.
        backbone_limit: the most tokens the model has positions for, None when unbounded.

    """
    from transformers import AutoTokenizer

    if config.tokenizer_name_or_path is None and name == TINY:
        tokenizer = _tiny_tokenizer()
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                config.tokenizer_name_or_path or name,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"No tokenizer could be loaded from {config.tokenizer_name_or_path or name}: "
                f"{_first_line(error)} Give one by model.tokenizer_name_or_path=..."
            ) from None
    tokenizer.padding_side = config.padding_side or said.padding_side or tokenizer.padding_side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    own_limit = min(DEFAULT_MAX_LENGTH, backbone_limit or DEFAULT_MAX_LENGTH)
    max_length = config.max_length or said.max_length or own_limit
    if backbone_limit is not None and max_length > backbone_limit:
        raise ConfigError(
            f"model.max_length={max_length} cannot work: the model has positions for {backbone_limit} "
            f"tokens; type model.max_length={backbone_limit}."
        )
    prompt = config.prompt if config.prompt is not None else said.prompt
    return TextTokenizer(tokenizer, max_length, prompt)


def load_backbone(config: ModelConfig, name: str, bits: int | None = None) -> PreTrainedModel:
    """Return the bare model (no language-model head), weights loaded, in evaluation mode.

    Args:
        config: how to load it.
        name: its folder or hub name.
        bits: 4 or 8 to keep the weights of linear layers in so many.

    Raises:
        ConfigError: nothing to load, missing weights, or settings that contradict the architecture.

    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel

    if name == TINY:
        if bits is not None:
            raise ConfigError(f"model.load_kbit={bits} cannot work with tiny, which is small enough: leave it out.")
        return _tiny_model()
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        model, report = AutoModel.from_pretrained(
            name,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype=dtype,
            attn_implementation=config.attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in a sentence
            **(loading_options(bits, own_device()) if bits is not None else {}),
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ConfigError(
            f"model.name_or_path={name} could not be loaded: {_first_line(error)} Give a hub name or a "
            f"folder with config.json and model.safetensors."
        ) from None
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key and "position_ids" not in key)
    mismatched = sorted(name for name, *_ in report["mismatched_keys"])
    if missing or mismatched:
        example = (missing or mismatched)[0]
        raise ConfigError(
            f"model.name_or_path={name} does not fit its config.json: {len(missing)} weights are missing "
            f"and {len(mismatched)} have another shape, {example} for one. Those would "
            f"start at random; give the right folder."
        )
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"model.name_or_path={name} cannot work: {type(model).__name__} is an encoder with a decoder behind it; "
            f"choose an encoder such as bert_base or a decoder such as qwen3_0.6b."
        )
    is_llm = is_decoder(model)
    if config.is_llm is not None and config.is_llm != is_llm:
        raise ConfigError(
            f"model.is_llm={str(config.is_llm).lower()} contradicts the model: "
            f"{type(model).__name__} is {'a decoder' if is_llm else 'an encoder'}; leave it out."
        )
    return model


def is_decoder(model: PreTrainedModel) -> bool:
    """Return whether the architecture is a decoder: it has a causal head in transformers, and no masked one."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = model.config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def position_limit(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model has positions for; None for rotary and relative ones, which have no table."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    if limit is None or position_table(model) is None:
        return None
    return limit - first_position(model)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


def _tiny_tokenizer() -> Any:
    from transformers import BertTokenizer

    from angle.data.sample import vocabulary

    return BertTokenizer(vocab={piece: number for number, piece in enumerate(vocabulary())}, do_lower_case=True)


def _tiny_model() -> PreTrainedModel:
    """Return the built-in model. Its random start is always the same, as a checkpoint's weights would be."""
    import torch
    from transformers import BertConfig, BertModel

    from angle.data.sample import vocabulary

    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(config).eval()

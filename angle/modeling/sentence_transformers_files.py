"""The settings of a sentence-transformers folder of any generation: read whole, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from angle.errors import ConfigError
from angle.modeling.locations import find_file, read_json, read_json_object
from angle.modeling.pooling import SENTENCE_TRANSFORMERS_KEYS, averaging_matrix, strategy_of_modes
from angle.prompts import PLAIN, escaped

MODULES_FILE = "modules.json"
#: Where settings of the Transformer module are, the first that is there: its file was named after the model once.
TRANSFORMER_FILES = tuple(
    f"sentence_{model}_config.json"
    for model in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: A tokenizer without a maximum length has a number beyond this.
NO_MAX_LENGTH = 10**6
#: Our own name of the prompt that stands for a model's template.
TEMPLATE_PROMPT = "text"
#: Names under which sentence-transformers looks for the prompts of `encode_query` and `encode_document`.
ROLE_PROMPTS = ("query", "document")
#: What its `encode_document` takes where there is no prompt of that name.
PASSAGE_PROMPTS = ("passage", "corpus")
#: How sentence-transformers can compare embeddings; the first is what it does unless a folder says otherwise.
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def read_modules(name: str, revision: str | None) -> list[dict[str, str]] | None:
    """Return the modules of a sentence-transformers folder, each with a class and a path; None if it is no such folder.

    Raises:
        OSError: the hub cannot be reached.
        ConfigError: the list is damaged.

    """
    modules = read_json(name, MODULES_FILE, revision)
    if modules is None:
        return None
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    ):
        raise ConfigError(
            f"{MODULES_FILE} of {name} must hold a list of modules, each with a type and a path: copy or download the "
            f"model again."
        )
    return [{"class": module["type"].rsplit(".", 1)[-1], "path": module["path"]} for module in modules]


def transformer_folder(name: str, revision: str | None) -> str:
    """Return where the weights and the tokenizer are: early versions put them in a folder of their own.

    Raises:
        ConfigError: that folder is in a repository on the hub.

    """
    try:
        modules = read_modules(name, revision) or []
    except OSError:
        return name
    path = next((module["path"] for module in modules if module["class"] == "Transformer"), "")
    if not path or path == ".":
        return name
    if not Path(name).is_dir():
        raise ConfigError(
            f"{name} keeps its weights in {path}/ of its repository: download it, and give the folder that it is in."
        )
    return str(Path(name) / path)


def read_settings(name: str, modules: list[dict[str, str]], revision: str | None) -> tuple[dict[str, Any], str | None]:
    """Return the settings of a sentence-transformers folder, and why its pooling is unknown.

    Args:
        name: the folder or repository.
        modules: its modules.
        revision: its revision on the hub.

    Returns:
        Fields of an `EmbeddingConfig`, and the problem; None without one.

    Raises:
        ConfigError: a module, or how it is set, is not supported.

    """
    metadata = read_json_object(name, "config_sentence_transformers.json", revision) or {}
    if metadata.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise ConfigError(f"{name} is a {metadata['model_type']}, whose output is no sentence embedding.")
    values: dict[str, Any] = {
        "prompt": _prompt(name, metadata),
        "prompts": _prompts(metadata),
        "similarity": _similarity(metadata),
        "dimensions": metadata.get("truncate_dim"),
    }
    problem: str | None = f"{name} has no Pooling module, so its pooling is unknown: type pooling.strategy=..."
    modes: list[str] = []
    for number, module in enumerate(modules):
        prefix = f"{module['path']}/" if module["path"] not in ("", ".") else ""
        if module["class"] == "Transformer" and number == 0:
            values |= _transformer_values(name, prefix, revision)
        elif module["class"] == "Pooling":
            config = read_json_object(name, f"{prefix}config.json", revision) or {}
            modes = _pooling_modes(config)
            values["pooling"] = strategy_of_modes(tuple(modes)) if len(modes) == 1 else None
            problem = None if values["pooling"] is not None else unsupported_pooling(name, " + ".join(modes))
            if problem is None and values["prompt"] is not None and config.get("include_prompt") is False:
                values["pooling"], problem = (
                    None,
                    (
                        f"{name} leaves its prompt's tokens out of its pooling, which is not supported: type "
                        f"pooling.strategy=... to pool them too."
                    ),
                )
        elif module["class"] == "Dense" and (size := _averaged_size(name, prefix, len(modes), revision)) is not None:
            values["pooling"], values["dimensions"] = strategy_of_modes(tuple(modes)), size
            problem = None if values["pooling"] is not None else problem
        elif module["class"] == "Normalize" and _is_last(modules, number) and _is_plain(name, prefix, revision):
            values["normalize"] = True
        elif module["class"] != "Dropout":  # which does nothing once a model is trained
            raise ConfigError(
                f"{name} has a {module['class']} module, which this project does not run, so its embeddings would "
                f"differ."
            )
    return values, problem


def unsupported_pooling(name: str, pooling: str) -> str:
    """Return the message about a model whose pooling this project does not have."""
    return f"{name} uses pooling {pooling}, which is not supported: type pooling.strategy=... to choose another."


def _transformer_values(name: str, prefix: str, revision: str | None) -> dict[str, Any]:
    """Return the maximum length and whether texts are lower-cased."""
    contents = (read_json_object(name, f"{prefix}{file}", revision) for file in TRANSFORMER_FILES)
    settings = next((content for content in contents if content), {})
    for key, usual in (("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")):
        if settings.get(key, usual) != usual:
            raise ConfigError(
                f"{name} has {key}={settings[key]} where sentence embeddings have {usual}, which this project does not "
                f"run, so its embeddings would differ."
            )
    max_length = settings.get("max_seq_length")
    if max_length is None:  # version 6 keeps it with the tokenizer
        tokenizer_config = read_json_object(name, f"{prefix}tokenizer_config.json", revision) or {}
        max_length = tokenizer_config.get("model_max_length")
    known = isinstance(max_length, int) and 0 < max_length < NO_MAX_LENGTH
    return {"max_length": max_length if known else None, "lower_case": settings.get("do_lower_case") or None}


def _prompt(name: str, metadata: dict[str, Any]) -> str | None:
    """Return the template that stands for the prompt that is put before every text; None if there is none."""
    prompts, default = metadata.get("prompts") or {}, metadata.get("default_prompt_name")
    if default is None:
        return None
    if not isinstance(prompts, dict) or not isinstance(prompts.get(default), str):
        raise ConfigError(
            f"config_sentence_transformers.json of {name} has default_prompt_name={default}, but no prompt of that "
            f"name: correct it, or give the template by model.prompt=..."
        )
    prefix = prompts[default]
    return f"{escaped(prefix)}{PLAIN}" if prefix else None


def _prompts(metadata: dict[str, Any]) -> dict[str, str] | None:
    """Return the prompts that are put before a text if they are asked for by name, as `angle.prompts` writes them.

    None if all are empty. Those of queries and documents are not taken over where they just repeat the template, as
    `angle.export` writes them.
    """
    prompts, own = metadata.get("prompts"), metadata.get("default_prompt_name") == TEMPLATE_PROMPT
    if not isinstance(prompts, dict):
        return None
    named = {
        name: f"{escaped(text)}{PLAIN}" if escaped(text) != text else text
        for name, text in prompts.items()
        if isinstance(text, str)
    }
    template = named.pop(TEMPLATE_PROMPT, None) if own else None
    if template is not None and all(named.get(role) == template for role in ROLE_PROMPTS):
        for role in ROLE_PROMPTS:
            del named[role]
    passages = [named[name] for name in PASSAGE_PROMPTS if name in named]
    if passages:
        named.setdefault("document", passages[0])
    return named if any(named.values()) else None


def _similarity(metadata: dict[str, Any]) -> str | None:
    """Return how the embeddings are meant to be compared; None for cosines."""
    similarity = metadata.get("similarity_fn_name")
    return similarity if similarity in SIMILARITIES[1:] else None


def _is_last(modules: list[dict[str, str]], number: int) -> bool:
    """Return whether nothing that computes follows a module; what follows could change the length of an embedding."""
    return all(module["class"] in ("Normalize", "Dropout") for module in modules[number:])


def _is_plain(name: str, prefix: str, revision: str | None) -> bool:
    """Return whether a Normalize module scales the embedding of a text; version 6 has others too."""
    config = read_json_object(name, f"{prefix}config.json", revision) or {}
    names = (config.get("module_input_name"), config.get("module_output_name"))
    return all(each in (None, "sentence_embedding") for each in names)


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    """Return the modes of a Pooling module; version 6 of sentence-transformers writes them without a key for each."""
    modes = [mode for mode, key in SENTENCE_TRANSFORMERS_KEYS.items() if config.get(key) is True]
    if modes:
        return modes
    mode = config.get("pooling_mode")
    return [str(each) for each in mode] if isinstance(mode, list) else [str(mode)]


def _averaged_size(name: str, prefix: str, num_modes: int, revision: str | None) -> int | None:
    """Return the size of embeddings if a Dense module only averages those of several poolings, or cuts them.

    `angle.export` writes such a module.
    """
    config = read_json_object(name, f"{prefix}config.json", revision) or {}
    identity = str(config.get("activation_function", "")).endswith(".Identity")
    file = find_file(name, f"{prefix}model.safetensors", revision)
    if not identity or config.get("bias") or num_modes == 0 or file is None:
        return None
    from safetensors.torch import load_file

    weight = load_file(file)["linear.weight"]
    size, width = weight.shape
    if width % num_modes or size > width // num_modes:
        return None
    return size if weight.equal(averaging_matrix(width // num_modes, size, num_modes)) else None

"""A sentence-transformers folder whose embeddings equal the encoder's."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from angle.config import RUN_FILE, ConvertConfig
from angle.errors import ConfigError
from angle.export.architecture import read_architecture
from angle.export.card_model import CardModel, SentenceTransformersSupport
from angle.export.changes import Changes, changes_from, origin_of
from angle.export.example import make_example
from angle.export.generations import needs_version_6, shared_model_config, shared_tokenizer_config
from angle.export.merging import embed_unmerged
from angle.export.model_card import model_card
from angle.export.onnx_files import check_packages, onnx_paths, write_onnx_files
from angle.export.prompts import prompt_settings, with_suffix_tokens, words_after_text
from angle.export.trained_run import TrainedRun, find_trained_run
from angle.export.verification import Verification, can_verify, expected_embeddings, texts_by_method, verify
from angle.files import replace_folder
from angle.modeling.bidirectional import bidirectional_switches
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.encoder import Encoder
from angle.modeling.layers import base_model
from angle.modeling.locations import ADAPTER_FILE, TINY, adapter_base, locate_model, read_json_object
from angle.modeling.pooling import POOLINGS, SENTENCE_TRANSFORMERS_KEYS, averaging_matrix
from angle.modeling.sentence_transformers_files import SIMILARITIES
from angle.modeling.trials import padding_is_exact
from angle.quiet import quiet_transformers

TOKENIZER_FILE = "tokenizer_config.json"
#: What version 6 calls the module that version 5 has as sentence_transformers.models.Transformer.
VERSION_6_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion."""

    folder: Path
    merge_distance: float | None
    """Largest cosine distance that merging an adapter caused; None if none was merged."""
    needs_version_6: bool
    """Whether sentence-transformers 5 refuses to load the folder, because its embeddings would differ."""
    verification: Verification | None
    """How the embeddings compare with the encoder's; None without sentence-transformers to load the folder."""
    changes: Changes | None
    """How its settings compare with those of the sentence-transformers folder that the model was trained from; None
    if it was trained from no such folder."""
    card_problem: str | None
    """What the folder's README does not tell of the run that trained the model, and why; None if it does."""
    onnx_sizes: dict[str, int]
    """Bytes of its ONNX files, by their paths in the folder."""


def convert(config: ConvertConfig) -> Conversion:
    """Write a model as a sentence-transformers folder, and load that in a new process to compare embeddings.

    Raises:
        ConfigError: sentence-transformers does not support the pooling or the template, the folder is not empty,
            merging the adapter changes the embeddings, or sentence-transformers or an ONNX file gives others.

    """
    source = Path(config.model.name_or_path)
    if config.output_dir is None and not (source / RUN_FILE).is_file():
        name = config.model.name_or_path
        hint = "" if source.exists() or name == TINY else f"There is no folder {name} here. "
        raise ConfigError(f"{hint}output_dir is missing: give the new folder, for example output_dir=my-encoder.")
    folder = Path(config.output_dir) if config.output_dir else source / "sentence_transformers"
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ConfigError(
            f"output_dir={folder} {'is a file' if folder.is_file() else 'holds files already'}, so nothing is written "
            f"there; give a new folder by output_dir=..."
        )
    if config.onnx is not None:
        check_packages(config.onnx)
    model = config.model
    try:
        run, card_problem = find_trained_run(source), None
        if run is not None and run.config.hub.samples and not run.samples:
            card_problem = "the README has no samples, because the training rows are no longer where they were"
    except ConfigError as error:  # what describes the run was changed; its model has checksums of its own
        run, card_problem = None, f"the README does not tell of the training: {error}"
    has_adapter = (
        model.adapter is not None or adapter_base(locate_model(model.name_or_path), model.revision) is not None
    )
    unmerged = embed_unmerged(model, config.pooling) if has_adapter and config.merge else None
    encoder = Encoder.load(model, config.pooling, merge=config.merge).eval()
    distance = None if unmerged is None else unmerged.distance(encoder)
    if config.normalize is not None:
        encoder.normalize = config.normalize
    _check_expressible(encoder)

    def write(scratch: Path) -> Conversion:
        needs_version_6 = _write_folder(encoder, scratch)
        origin = origin_of(model) if run is None else run.config.model.name_or_path
        changes = changes_from(origin, encoder.embedding_config)
        _write_card(encoder, scratch, folder.name, origin, run, config.onnx, needs_version_6=needs_version_6)
        verification, onnx_sizes = _add_onnx_and_verify(encoder, scratch, config)
        return Conversion(folder, distance, needs_version_6, verification, changes, card_problem, onnx_sizes)

    return replace_folder(folder, write)


def save_sentence_transformers(encoder: Encoder, folder: Path) -> bool:
    """Write an encoder as a sentence-transformers folder, atomically; unlike `convert`, without loading it.

    Returns whether only version 6 of sentence-transformers can load it.

    Raises:
        ConfigError: sentence-transformers does not support the pooling or the template.

    """
    _check_expressible(encoder)
    return replace_folder(folder, lambda scratch: _write_folder(encoder, scratch))


def _check_expressible(encoder: Encoder) -> None:
    """Raise ConfigError if sentence-transformers cannot express an encoder, as far as that is known without writing."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    check_supported(encoder.embedding_config)
    tokenizer, model = encoder.tokenizer, base_model(encoder.backbone)
    if type(model.config) in PROCESSOR_MAPPING:
        raise ConfigError(
            f"{type(model).__name__} has no equivalent in sentence-transformers, which would give its texts to a "
            f"processor for images or sounds too: load this model with angle's Encoder."
        )
    if not padding_is_exact(encoder.backbone, tokenizer.max_length, tokenizer.pad_id):
        raise ConfigError(
            f"{type(model).__name__} has no equivalent in sentence-transformers, whose padding "
            f"would change its embeddings: load this model with angle's Encoder."
        )


def _write_folder(encoder: Encoder, folder: Path) -> bool:
    """Write an encoder into a new folder, and return whether only version 6 of sentence-transformers can load that."""
    own_tokenizer, suffix = encoder.tokenizer, words_after_text(encoder.embedding_config)
    if suffix:
        encoder.tokenizer = with_suffix_tokens(own_tokenizer, suffix)
    try:
        encoder.save(folder)
        embedding_config = encoder.embedding_config
    finally:
        encoder.tokenizer = own_tokenizer
    if encoder.has_adapters or encoder.bidirectional_from == 0:
        _check_stock_model(encoder, folder)
    hidden_size = encoder.backbone.config.hidden_size
    uses_token_types = encoder.token_types is not None
    return write_sentence_transformers_files(embedding_config, hidden_size, folder, uses_token_types=uses_token_types)


def _write_card(
    encoder: Encoder,
    folder: Path,
    name: str,
    origin: str,
    run: TrainedRun | None,
    onnx: str | None,
    *,
    needs_version_6: bool,
) -> None:
    """Write the README.md of a folder that will have a name.

    Args:
        encoder: what was written.
        folder: where it was written.
        name: the folder's later name.
        origin: the model that it was trained from.
        run: the run that trained it, if there is one.
        onnx: the setting.
        needs_version_6: whether only version 6 of sentence-transformers can load it.

    """
    support = SentenceTransformersSupport
    model = CardModel(
        name,
        encoder.embedding_config,
        origin if not Path(origin).exists() else str(Path(origin).resolve()),
        encoder.has_adapters,
        encoder.backbone.config.hidden_size,
        support.IN_VERSION_6 if needs_version_6 else support.AS_IS,
        read_architecture(folder),
        make_example(encoder.tokenizer, encoder.encode_tokens, encoder.embedding_config),
        is_on_hub=False,
        onnx=onnx_paths(onnx),
    )
    (folder / "README.md").write_text(model_card(model, run), encoding="utf-8")


def _add_onnx_and_verify(
    encoder: Encoder, folder: Path, config: ConvertConfig
) -> tuple[Verification | None, dict[str, int]]:
    """Add ONNX files to a written folder, if asked for, and compare its embeddings with the encoder's.

    Its weights are then gone: the exporter and the other process need as much memory.
    """
    texts, dtype, types = texts_by_method(encoder.tokenizer), encoder.backbone.dtype, encoder.token_types is not None
    expected = expected_embeddings(encoder, texts) if can_verify() else None
    encoder.to("meta")
    trust, sizes = config.model.trust_remote_code, dict[str, int]()
    if config.onnx is not None:
        sizes = write_onnx_files(folder, config.onnx, uses_token_types=types, trust_remote_code=trust)
    flags = ("--trust-remote-code",) if trust else ()
    return expected if expected is None else verify(folder, texts, expected, dtype, *flags, onnx=(*sizes,)), sizes


def check_supported(embedding_config: EmbeddingConfig) -> None:
    """Check that sentence-transformers supports how a model pools and formats texts.

    Raises:
        ConfigError: it cannot.

    """
    if embedding_config.bidirectional_from:
        raise ConfigError(
            f"A model whose layers attend in both directions from layer {embedding_config.bidirectional_from} on has "
            f"no equivalent in sentence-transformers, which can express all layers or none: load it with angle's "
            f"Encoder, or train with billm=all."
        )
    words_after_text(embedding_config)
    _pooling_modes(embedding_config.pooling)


def write_sentence_transformers_files(
    embedding_config: EmbeddingConfig,
    hidden_size: int,
    folder: Path,
    *,
    uses_token_types: bool = False,
) -> bool:
    """Write, into a folder with a model, the small files that tell sentence-transformers how to use it.

    The settings of its model and tokenizer are written anew, for both generations; if they are links, what they lead
    to stays.

    Args:
        embedding_config: how texts are tokenised and pooled, and their embeddings compared.
        hidden_size: dimension of the model's hidden states.
        folder: the folder with the model.
        uses_token_types: whether the model is given the types of tokens.

    Returns:
        Whether only version 6 of sentence-transformers can load it.

    Raises:
        ConfigError: sentence-transformers does not support the pooling or the template; nothing is written.

    """
    check_supported(embedding_config)
    modes = _pooling_modes(embedding_config.pooling)
    tokenizer_config = shared_tokenizer_config(_read_json(folder / TOKENIZER_FILE), uses_token_types=uses_token_types)
    _write_json(folder / TOKENIZER_FILE, tokenizer_config)
    version_6_only = _share_model_config(folder)
    modules = [_module(0, "", "Transformer"), _module(1, "1_Pooling", "Pooling")]
    if version_6_only:  # 5 has no module of that name, and ends in an error before it loads anything
        modules[0]["type"] = VERSION_6_TRANSFORMER
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": embedding_config.max_length, "do_lower_case": bool(embedding_config.lower_case)},
    )
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden_size,
            **{key: mode in modes for mode, key in SENTENCE_TRANSFORMERS_KEYS.items()},
            "include_prompt": True,
        },
    )
    if len(modes) > 1 or embedding_config.dimensions is not None:
        modules.append(_module(2, "2_Dense", "Dense"))
        _write_averaging_layer(folder / "2_Dense", hidden_size, embedding_config.dimensions or hidden_size, len(modes))
    if embedding_config.normalize:
        path = f"{len(modules)}_Normalize"
        modules.append(_module(len(modules), path, "Normalize"))
        (folder / path).mkdir()
    _write_json(folder / "modules.json", modules)
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            **prompt_settings(embedding_config),
            "similarity_fn_name": embedding_config.similarity or SIMILARITIES[0],
            # 5 says first that the folder was made by a later version, and to update.
            **({"__version__": {"sentence_transformers": "6.0.0"}} if version_6_only else {}),
        },
    )
    return version_6_only


def _share_model_config(folder: Path) -> bool:
    """Write the model's settings where both generations read them, and return whether only the later one can do so."""
    adapter_file, model_file = folder / ADAPTER_FILE, folder / "config.json"
    if not adapter_file.is_file():
        content = shared_model_config(_read_json(model_file))
        _write_json(model_file, content)
        return needs_version_6(content)
    base = _read_json(adapter_file)["base_model_name_or_path"]
    content = read_json_object(base, "config.json", None) or {}  # which stays as it is
    return needs_version_6(content) or content != shared_model_config(content)


def _check_stock_model(encoder: Encoder, folder: Path) -> None:
    """Check that plain transformers reproduces the encoder's hidden states from a saved folder; if not, remove it.

    A bidirectional decoder's configuration is changed, if need be, to one that lets transformers do so.

    Raises:
        ConfigError: transformers interprets bidirectional layers, or an adapter, differently.

    """
    if encoder.has_adapters:
        changes: list[dict[str, Any]] = [{}]
        problem = (
            "merge=false cannot work with this model: sentence-transformers would put the adapter on its base as that "
            "is stored, which gives other embeddings; type merge=true."
        )
    else:
        changes = bidirectional_switches(encoder.backbone.config)
        problem = (
            f"{type(encoder.backbone).__name__} cannot attend in both directions by its configuration alone, which is "
            f"all that sentence-transformers reads: load this model with angle's Encoder."
        )
    for change in changes:
        if change:
            _write_json(folder / "config.json", _read_json(folder / "config.json") | change)
        if _transformers_gives_same_states(encoder, folder):
            return
    shutil.rmtree(folder)
    raise ConfigError(problem)


@quiet_transformers()
@torch.no_grad()
def _transformers_gives_same_states(encoder: Encoder, folder: Path) -> bool:
    from transformers import AutoModel

    try:
        stock = AutoModel.from_pretrained(folder, dtype="auto").to(encoder.device).eval()
    except (OSError, ValueError):  # transformers cannot find its base
        return False
    length = encoder.tokenizer.max_length  # a sliding window narrower than this differs in transformers
    ids = torch.arange(1, length + 1, device=encoder.device).remainder(stock.config.vocab_size)[None]
    kwargs = {"use_cache": False} if encoder.is_llm else {}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **kwargs}
    ours, theirs = (model(**inputs).last_hidden_state.float() for model in (encoder.backbone, stock))
    return bool((ours - theirs).abs().max() <= 1e-3 * ours.abs().max())


def _pooling_modes(strategy: str | None) -> tuple[str, ...]:
    """Return the modes of sentence-transformers whose mean is a pooling."""
    if strategy not in POOLINGS or not POOLINGS[strategy].sentence_transformers:
        known = ", ".join(name for name, pooling in POOLINGS.items() if pooling.sentence_transformers)
        raise ConfigError(
            f"pooling.strategy={strategy} has no equivalent in sentence-transformers, which can express {known}."
        )
    return POOLINGS[strategy].sentence_transformers


def _module(index: int, path: str, name: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}


def _write_averaging_layer(folder: Path, hidden_size: int, dimensions: int, num_modes: int) -> None:
    """Write a fixed layer that turns concatenated embeddings into the first dimensions of their mean."""
    _write_json(
        folder / "config.json",
        {
            "in_features": num_modes * hidden_size,
            "out_features": dimensions,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    save_file({"linear.weight": averaging_matrix(hidden_size, dimensions, num_modes)}, folder / "model.safetensors")


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a link
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

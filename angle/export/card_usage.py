"""The code of a model card, which can be copied, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from angle.export.card_model import CardModel, SentenceTransformersSupport
from angle.export.example import OTHER_COLUMNS, SENTENCES
from angle.export.public_names import describe_model
from angle.modeling.sentence_transformers_files import ROLE_PROMPTS
from angle.prompts import template_fields

#: How `similarity_matrix` is written with torch alone.
SIMILARITY_CODE = {
    "cosine": "torch.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)",
    "dot": "embeddings @ embeddings.T",
    "euclidean": "-torch.cdist(embeddings, embeddings)",
    "manhattan": "-torch.cdist(embeddings, embeddings, p=1)",
}
#: What the ONNX backend of sentence-transformers needs; angle-hydra needs a later transformers than that does.
ONNX_NEEDS = 'By ONNX, in an environment of its own, after pip install "sentence-transformers[onnx]"'
INSTALL_ANGLE = "angle-hydra, in a clone of its repository:\n\n```bash\npip install -c constraints.txt -e .\n```"


def usage(model: CardModel) -> str:
    """Return the section on how to use a model: with sentence-transformers if it loads there, and with angle-hydra."""
    if model.is_loadable:
        is_older_enough = model.sentence_transformers is SentenceTransformersSupport.AS_IS
        needed = "sentence-transformers" if is_older_enough else "'sentence-transformers>=6'"
        needed += " peft" if model.has_adapters else ""
        return (
            f"With [sentence-transformers](https://sbert.net):\n\n```bash\npip install -U {needed}\n```\n\n"
            f"{_with_sentence_transformers(model)}\n\n{_by_onnx(model)}The same embeddings with {INSTALL_ANGLE}\n\n"
            f"{_with_angle(model, shows_result=False)}"
        )
    return f"Install {INSTALL_ANGLE}\n\n{_with_angle(model, shows_result=True)}{_without_sentence_transformers(model)}"


def _with_sentence_transformers(model: CardModel) -> str:
    where = "" if model.is_on_hub else "  # the path of this folder"
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{model.name}"){where}',
        *_sentences(),
        "embeddings = model.encode(sentences)",
        *_result(model, "model.similarity(embeddings, embeddings)"),
    ]
    prompts = model.embedding_config.prompts or {}
    if any(role in prompts for role in ROLE_PROMPTS):
        lines += ["", "# Queries and documents are written differently:"]
        lines += ["queries = model.encode_query(sentences)", "documents = model.encode_document(sentences)"]
    elif prompts:
        name = json.dumps(next(iter(prompts)))
        lines += ["", "# With one of the prompts that the model has by name:"]
        lines += [f"embeddings = model.encode(sentences, prompt_name={name})"]
    return _python(lines)


def onnx_code(name: str, paths: Iterable[str]) -> list[str]:
    """Return the lines that load a model by each of its ONNX files."""
    return [
        f'model = SentenceTransformer("{name}", backend="onnx", model_kwargs={{"file_name": "{Path(path).name}"}})'
        for path in paths
    ]


def _by_onnx(model: CardModel) -> str:
    """Return how to load it by its ONNX files, if it has any."""
    if not model.onnx:
        return ""
    lines = ["from sentence_transformers import SentenceTransformer", "", *onnx_code(model.name, model.onnx)]
    return f"{ONNX_NEEDS}:\n\n{_python(lines)}\n\n"


def _with_angle(model: CardModel, *, shows_result: bool) -> str:
    imports, name, note = "Encoder", f'"{model.name}"', ""
    if _lacks_base(model):
        imports, name = "Encoder, ModelConfig", f'ModelConfig("BASE", adapter="{model.name}")'
        note = f"`BASE` stands for the folder of what the adapters were made for: {describe_model(model.base)}.\n\n"
    columns = [field for field in template_fields(model.embedding_config.prompt or "{text}") if field != "text"]
    further = ""
    if columns:
        row = ", ".join(f'"{column}": "{OTHER_COLUMNS}"' for column in columns)
        further = f", [{{{row}}}] * len(sentences)"
    lines = [
        *(["import torch"] if shows_result else []),
        f"from angle import {imports}",
        "",
        *_sentences(),
        f"embeddings = Encoder.load({name}).encode(sentences{further})",
    ]
    if shows_result:
        lines += _result(model, SIMILARITY_CODE[model.embedding_config.similarity or "cosine"])
    return note + _python(lines)


def _without_sentence_transformers(model: CardModel) -> str:
    """Return what to do for sentence-transformers."""
    if model.sentence_transformers is SentenceTransformersSupport.NEVER:
        return "\n\nIt loads in angle-hydra only: sentence-transformers has no way to say how its texts are read."
    arguments = f"model.name_or_path={model.name}"
    if _lacks_base(model):
        arguments = f"model.name_or_path=BASE model.adapter={model.name}"
    merges = "merges the adapters and " if model.has_adapters else ""
    return (
        f"\n\nsentence-transformers does not load it as it is; `python convert.py {arguments} "
        f"output_dir=my-encoder` {merges}writes a folder that it does."
    )


def _lacks_base(model: CardModel) -> bool:
    """Return whether those who load a model must say where the base of its adapters is."""
    return model.has_adapters and model.is_on_hub and Path(model.base).is_absolute()


def _sentences() -> list[str]:
    return ["sentences = [", *(f'    "{sentence}",' for sentence in SENTENCES), "]"]


def _result(model: CardModel, similarities: str) -> list[str]:
    """Return the lines that print what comes out, followed by what they print, as comments, where that is known."""
    shape = similarity = ""
    lines = ["print(embeddings.shape)"]
    if model.example is not None:
        size = f"({len(SENTENCES)}, {model.example.dimensions})"
        shape = size if "model." in similarities else f"torch.Size([{size[1:-1]}])"
        similarity = str(torch.tensor(model.example.similarities))
        lines.append(f"# {shape}")
    lines.append(f"print({similarities})")
    return [*lines, *(f"# {line}" for line in similarity.splitlines())]


def _python(lines: list[str]) -> str:
    code = "\n".join(lines)
    return f"```python\n{code}\n```"

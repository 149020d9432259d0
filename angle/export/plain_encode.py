"""Embed texts with sentence-transformers alone, in a process of its own: python -P plain_encode.py FOLDER TEXTS OUTPUT

Nothing of this project is imported, so that any version of sentence-transformers can run it. TEXTS is a JSON file with
lists of them by the method that embeds them (encode, encode_query, encode_document), OUTPUT a .npy file for the
embeddings, one list after the other. Each --onnx=FILE of the folder adds those of all texts with that file in the
model's place, as the ONNX backend of sentence-transformers puts it there; that itself needs older packages. The
versions that computed them are printed as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(folder: str, texts: str, output: str, *flags: str) -> None:
    """Write the embeddings (N, D) of texts; a flag that is passed on is --trust-remote-code."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import numpy as np
    import sentence_transformers
    import transformers

    model = sentence_transformers.SentenceTransformer(
        folder, device="cpu", trust_remote_code="--trust-remote-code" in flags
    )
    embeddings = [embed(model, texts)]
    for flag in flags:
        if flag.startswith("--onnx="):
            run_by_onnx(model, Path(folder, flag.removeprefix("--onnx=")))
            embeddings.append(embed(model, texts))
    np.save(output, np.concatenate(embeddings))
    print(json.dumps({module.__name__: module.__version__ for module in (sentence_transformers, transformers)}))


def embed(model: Any, texts: str) -> Any:
    """Return the embeddings (N, D) of the texts in a file as an array of float32."""
    import numpy as np

    embeddings = []
    for method, each in json.loads(Path(texts).read_text(encoding="utf-8")).items():
        for part in (each[:1], each[1:]):  # one text alone, and others in batches: padding must change nothing
            embeddings.append(getattr(model, method)(part, batch_size=8, show_progress_bar=False))
    return np.concatenate(embeddings).astype(np.float32)


def run_by_onnx(model: Any, path: Path) -> None:
    """Let an ONNX file compute the hidden states of a loaded sentence-transformers model."""
    import onnxruntime
    import torch
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def forward(**inputs: Any) -> BaseModelOutput:
        states = session.run(["last_hidden_state"], {name: inputs[name].numpy() for name in names})[0]
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))

    backbone = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    backbone.forward = forward


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # whatever another version does not have or take
        sys.exit(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")

"""Embed texts with sentence-transformers alone, in a process of its own: python -P plain_encode.py FOLDER TEXTS OUTPUT

Nothing of this project is imported, so that any version of sentence-transformers can run it. TEXTS is a JSON file with
lists of them by the method that embeds them (encode, encode_query, encode_document), OUTPUT a .npy file for the
embeddings, one list after the other. The versions that computed them are printed as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(folder: str, texts: str, output: str, *flags: str) -> None:
    """Write the embeddings (N, D) of texts; a flag that is passed on is --trust-remote-code."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import numpy as np
    import sentence_transformers
    import transformers

    model = sentence_transformers.SentenceTransformer(
        folder, device="cpu", trust_remote_code="--trust-remote-code" in flags
    )
    # Not all in one batch, and not one by one: padding must change nothing.
    embeddings = [
        getattr(model, method)(each, batch_size=8, show_progress_bar=False)
        for method, each in json.loads(Path(texts).read_text(encoding="utf-8")).items()
    ]
    np.save(output, np.concatenate(embeddings).astype(np.float32))
    print(json.dumps({module.__name__: module.__version__ for module in (sentence_transformers, transformers)}))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # whatever another version does not have or take
        sys.exit(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")

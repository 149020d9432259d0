"""Convert an encoder to a folder that sentence-transformers loads: python convert.py model.name_or_path=RUN."""

from __future__ import annotations

from pathlib import Path

from angle.cli.app import launch, require_model
from angle.config import ConvertConfig


def main(config: ConvertConfig) -> None:
    """Convert the encoder, and print how to load the result."""
    from angle.export.sentence_transformers import convert

    require_model("convert.py")
    done = convert(config)
    if done.merge_distance is not None:
        print(f"Merged  the adapter; the largest cosine distance on held-out texts is {done.merge_distance:.1e}")
    if done.verification is None:
        print("Checked nothing: pip install sentence-transformers, to compare what it makes of the folder")
    else:
        print(f"Checked {done.verification}")
    if done.needs_version_6:
        print("Needs   sentence-transformers 6: version 5 would give other embeddings, so it refuses the folder")
    print(
        f"Saved   {done.folder}\n\nfrom sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{done.folder}")',
        flush=True,
    )


if __name__ == "__main__":
    launch(main, ConvertConfig, "convert", Path(__file__).resolve().parent / "conf")

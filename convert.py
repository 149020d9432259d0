"""Convert an encoder to a folder that sentence-transformers loads: python convert.py model.name_or_path=RUN."""

from __future__ import annotations

from pathlib import Path

from angle.cli.app import launch, require_model
from angle.config import ConvertConfig
from angle.terminal import announce, labelled, print_once


def main(config: ConvertConfig) -> None:
    """Convert the encoder, and print how to load the result."""
    require_model("convert.py")
    announce("loading libraries")
    from angle.export.card_usage import ONNX_NEEDS, onnx_code
    from angle.export.sentence_transformers import convert

    announce(f"converting {config.model.name_or_path}")
    done = convert(config)
    if done.merge_distance is not None:
        distance = f"the largest cosine distance on held-out texts is {done.merge_distance:.1e}"
        print_once(labelled("Merged", f"the adapter; {distance}"))
    if done.changes is not None:
        for label, settings in (("Kept", done.changes.kept), ("Changed", done.changes.changed)):
            if settings:
                print_once(labelled(label, "; ".join(settings)))
    if done.verification is None:
        text = "nothing: to compare, pip install sentence-transformers, and convert into another output_dir"
        print_once(labelled("Checked", text))
    else:
        print_once(labelled("Checked", str(done.verification)))
    if done.card_problem is not None:
        print_once(labelled("Note", done.card_problem))
    if done.needs_version_6:
        text = "sentence-transformers 6: version 5 would give other embeddings, so it refuses the folder"
        print_once(labelled("Needs", text))
    for path, size in done.onnx_sizes.items():
        compared = "" if done.verification is None else f"; {done.verification.onnx[path]}"
        print_once(labelled("ONNX", f"{path}, {size / 1e6:,.1f} MB{compared}"))
    print_once(
        f"Saved   {done.folder}\n\nfrom sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{done.folder}")'
    )
    if done.onnx_sizes:
        print_once("\n".join(["", f"# {ONNX_NEEDS}:", *onnx_code(str(done.folder), done.onnx_sizes)]))


if __name__ == "__main__":
    launch(main, ConvertConfig, "convert", Path(__file__).resolve().parent / "conf")

"""Embed the texts of files: python -m angle.embed model.name_or_path=RUN rows.name_or_path=corpus.jsonl."""

from __future__ import annotations

from pathlib import Path

from angle.cli.app import launch, require_model
from angle.config import EmbedConfig
from angle.files import relative_to_cwd
from angle.terminal import announce, print_once


def main(config: EmbedConfig) -> None:
    """Embed, and print how many embeddings there are and where."""
    require_model("-m angle.embed")
    announce("loading libraries")
    from angle.distributed.process_group import init_distributed
    from angle.embedding.embed import embed
    from angle.embedding.folder import RECORD_FILE

    embedding = embed(config, init_distributed("angle.embed"))
    path = relative_to_cwd(embedding.path)
    print_once(embedding)
    print_once(f"\nSaved   {path}, and how it was made: {relative_to_cwd(embedding.path.with_name(RECORD_FILE))}")


if __name__ == "__main__":
    launch(main, EmbedConfig, "embed", Path(__file__).resolve().parent.parent / "conf")

"""Pushing the model of class AnglE to the hub, with a card that tells where it comes from."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from angle.export.example import make_example
from angle.export.hub import push_model
from angle.export.trained_run import read_trained_run
from angle.modeling.embedding_config import read_embedding_config
from angle.modeling.encoder import Encoder
from angle.modeling.locations import locate_model
from angle.training.run_folder import RunFolder, RunState


def push_encoder(encoder: Encoder, loaded_from: str, hub_model_id: str, *, private: bool, exist_ok: bool) -> str:
    """Push an encoder and its card in one commit, and return the URL.

    Args:
        encoder: the encoder.
        loaded_from: where it was loaded from; if it is the model of a finished run, the card describes that run.
        hub_model_id: user/name.
        private: whether a new repository is private.
        exist_ok: whether all files of a repository that already holds others may be replaced.

    Raises:
        ConfigError: the name is invalid, there is no token, or the repository is taken.
        HubError: the hub did not accept the push.

    """
    run = RunFolder(Path(loaded_from))
    is_run = (
        run.state() is RunState.FINISHED
        and read_embedding_config(locate_model(loaded_from)) == encoder.embedding_config
    )
    trained = read_trained_run(run.path) if is_run else None
    base = loaded_from if not run.path.exists() else str(run.path.resolve())
    if trained is not None:
        base = trained.config.model.name_or_path
    example = make_example(encoder.tokenizer, encoder.encode_tokens, encoder.embedding_config)
    with TemporaryDirectory() as temp_folder:
        folder = Path(temp_folder) / "model"
        encoder.save(folder)
        return push_model(folder, hub_model_id, base, trained, private=private, example=example, exist_ok=exist_ok)

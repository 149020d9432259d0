"""Push a model to the Hugging Face hub: first check for anything that would prevent it, then push in one commit."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from angle.config import HubConfig
from angle.config.hub import check_model_id
from angle.errors import ConfigError, HubError, first_line
from angle.export.architecture import read_architecture
from angle.export.card_model import CardModel, SentenceTransformersSupport
from angle.export.example import Example
from angle.export.model_card import model_card
from angle.export.prompts import words_after_text
from angle.export.public_names import name_on_hub
from angle.export.sentence_transformers import TOKENIZER_FILE, check_supported, write_sentence_transformers_files
from angle.export.trained_run import TrainedRun
from angle.files import MANIFEST, checksum
from angle.modeling.embedding_config import EmbeddingConfig, read_embedding_config
from angle.modeling.locations import ADAPTER_FILE
from angle.modeling.trials import is_proved_config
from angle.quiet import quiet_hub
from angle.timeouts import call_with_timeout

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

#: The hub itself writes this file into every new repository.
GIT_ATTRIBUTES = ".gitattributes"
#: Entries of that file that tell from where on this machine the tokenizer was loaded.
LOCAL_TOKENIZER_ENTRIES = ("is_local", "local_files_only", "name_or_path")


def check_push(model_id: str, *, private: bool, timeout: float = HubConfig.timeout) -> None:
    """Check before training, as far as that is possible, whether a new model can be pushed there.

    Raises:
        ConfigError: there is no token, it may not write there, the repository is taken, or the hub refuses to say.
        HubError: the hub does not answer within `timeout` seconds, or not as a hub does.

    """
    try:
        api = _api(model_id)
        with _hub_requests(model_id):
            account = call_with_timeout(timeout, api.whoami)
            owners = [account["name"], *(organization["name"] for organization in account.get("orgs") or [])]
        _check_account(account, owners, model_id, api.endpoint)
        _fetch_repository(api, model_id, private=private, timeout=timeout)
    except HubError as error:
        if not _is_refusal(error):
            raise
        raise ConfigError(
            f"hub.push=true cannot work now: {error} Try hf auth whoami, or leave hub.push out and push later with "
            f"python train.py train.resume=RUN hub.push=true hub.model_id={model_id}"
        ) from error


def _check_account(account: dict[str, Any], owners: list[str], model_id: str, endpoint: str) -> None:
    """Raise ConfigError if an account or its token may not write to `model_id`, which must be one of its owners'."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise ConfigError(
            f"hub.push=true needs a token that may write, and this one may only read: make another on "
            f"{endpoint}/settings/tokens and type hf auth login."
        )
    namespace, name = model_id.split("/")
    if namespace.lower() not in map(str.lower, owners):
        raise ConfigError(
            f"hub.model_id={model_id} cannot work: the token is one of {owners[0]}, who may push to "
            f"{' and '.join(f'{owner}/' for owner in owners)}; type for example hub.model_id={owners[0]}/{name}."
        )


def push_model(
    model: Path,
    model_id: str,
    base: str,
    run: TrainedRun | None,
    *,
    private: bool,
    example: Example | None = None,
    exist_ok: bool = False,
    timeout: float = HubConfig.timeout,
) -> str:
    """Push a saved model with its card in one commit, and return its URL.

    Args:
        model: the folder of a saved encoder, which is not changed.
        model_id: user/name.
        base: the model that it was trained from.
        run: the run it comes from, if it comes from one.
        private: as in `push_folder`.
        example: what it makes of the example sentences, if that is known.
        exist_ok: as in `push_folder`.
        timeout: as in `push_folder`.

    Raises:
        ConfigError, HubError: as `push_folder`.

    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pushed = replace(stage_files(model, folder, model_id, base), example=example)
        (folder / "README.md").write_text(model_card(pushed, run), encoding="utf-8")
        return push_folder(folder, model_id, private=private, exist_ok=exist_ok, timeout=timeout)


@quiet_hub()
def push_folder(
    folder: Path,
    model_id: str,
    *,
    private: bool = True,
    exist_ok: bool = False,
    message: str = "Push a model that angle-hydra trained",
    timeout: float = HubConfig.timeout,
) -> str:
    """Push the files of a folder to a repository in one commit, and return its URL.

    Args:
        folder: the files; symbolic links are followed.
        model_id: user/name; created if it does not exist.
        private: whether a new repository is private.
        exist_ok: whether all files of a repository that already holds others may be replaced; its history keeps them.
            Otherwise it must be new or empty, or hold the same weights, because an earlier push was interrupted.
        message: title of the commit.
        timeout: seconds to wait for an answer; the upload itself takes as long as it moves.

    Raises:
        ConfigError: the name is invalid, there is no token, or the repository is taken.
        HubError: the hub did not accept the push; nothing has changed there, though an empty repository may now exist.

    """
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    api = _api(model_id)
    repository = _fetch_repository(api, model_id, private=private, exist_ok=exist_ok, folder=folder, timeout=timeout)
    files = {str(path.relative_to(folder)): path.resolve() for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = _file_names(repository) - files.keys() if exist_ok else set()
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationDelete(name) for name in sorted(stale)),
        *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
    ]
    try:
        with _patience(timeout):
            if repository is None:
                call_with_timeout(timeout, lambda: api.create_repo(model_id, private=private))
            # Not upload_folder, which splits a large folder into several commits. With the parent commit given, only
            # what was checked is replaced.
            parent_commit = None if repository is None else repository.sha
            api.create_commit(model_id, operations, commit_message=message, parent_commit=parent_commit)
    except Exception as error:  # three more libraries raise errors of their own types
        raise HubError(f"Pushing to {api.endpoint}/{model_id} failed: {_reason(error)}.") from error
    return f"{api.endpoint}/{model_id}"


def stage_files(model: Path, folder: Path, model_id: str, base: str) -> CardModel:
    """Stage the files of a saved model for a push, except its card, in an empty folder, and return its description.

    The model is neither changed nor copied: the new folder has links, and its own files only where something is added
    for sentence-transformers or a path on this machine is removed.

    Args:
        model: the folder of a saved encoder.
        folder: the empty folder.
        model_id: user/name.
        base: the model it was trained from; if it has adapters, their own record of it is used instead.

    """
    embedding_config, adapter = read_embedding_config(str(model)), _read_json(model / ADAPTER_FILE)
    base = str(adapter.get("base_model_name_or_path", base))
    hidden_size = _read_json(model / "config.json").get("hidden_size")
    support = SentenceTransformersSupport.CONVERTED if adapter else _support(embedding_config, model)
    for source in sorted(model.rglob("*")):
        target = folder / source.relative_to(model)
        if source.is_dir() or source.name in ("README.md", MANIFEST):  # peft's README contains a local path
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.name == ADAPTER_FILE:
            _write_json(target, _read_json(source) | {"base_model_name_or_path": _public_base(base)})
        elif source.name == TOKENIZER_FILE:
            content = _read_json(source)
            _write_json(target, {key: value for key, value in content.items() if key not in LOCAL_TOKENIZER_ENTRIES})
        else:
            target.symlink_to(source.resolve())
    if support is SentenceTransformersSupport.AS_IS:
        assert hidden_size is not None
        if write_sentence_transformers_files(embedding_config, hidden_size, folder):
            support = SentenceTransformersSupport.IN_VERSION_6
    architecture = read_architecture(model)
    return CardModel(model_id, embedding_config, base, bool(adapter), hidden_size, support, architecture)


def _public_base(base: str) -> str:
    """Return the name of an adapter's base as others may read it: that on the hub, or without its folders."""
    return name_on_hub(base) or Path(base).name


def _support(embedding_config: EmbeddingConfig, model: Path) -> SentenceTransformersSupport:
    from transformers import AutoConfig

    try:
        check_supported(embedding_config)
        has_suffix = bool(words_after_text(embedding_config))
    except ConfigError:
        return SentenceTransformersSupport.NEVER
    # Others must be loaded to find out whether padding, or a bidirectional decoder, is the same; convert does that.
    is_known = (
        embedding_config.bidirectional_from is None
        and not has_suffix
        and "auto_map" not in _read_json(model / "config.json")
    )
    if is_known and is_proved_config(AutoConfig.from_pretrained(model)):
        return SentenceTransformersSupport.AS_IS
    return SentenceTransformersSupport.CONVERTED


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _api(model_id: str) -> HfApi:
    """Return the client of the hub's API.

    Raises:
        ConfigError: the name is invalid, offline mode is set, or there is no token.

    """
    from huggingface_hub import HfApi, get_token, is_offline_mode

    check_model_id(model_id)
    if is_offline_mode():
        raise ConfigError(
            f"hub.push=true cannot reach {model_id} while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it, or "
            f"leave hub.push out, which can be added later to python train.py train.resume=RUN."
        )
    with _hub_requests(model_id):
        token = get_token()
    if token is None:
        raise ConfigError(
            "hub.push=true needs a token of the Hugging Face hub that may write: type hf auth login once, or set "
            "HF_TOKEN."
        )
    return HfApi(library_name="angle-hydra")


def _fetch_repository(
    api: HfApi,
    model_id: str,
    *,
    private: bool,
    exist_ok: bool = False,
    folder: Path | None = None,
    timeout: float = HubConfig.timeout,
) -> ModelInfo | None:
    """Return the hub's information on a repository that may be pushed to, or None if it does not exist yet."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with _hub_requests(model_id):
        try:
            repository = call_with_timeout(timeout, lambda: api.model_info(model_id, files_metadata=True))
        except RepositoryNotFoundError:
            return None
    if private and repository.private is False:
        raise ConfigError(
            f"hub.private=true cannot work with hub.model_id={model_id}, which exists already and is public: give a "
            f"new name, or type hub.private=false."
        )
    if _file_names(repository) and not exist_ok and not (folder and _has_weights_of(repository, folder)):
        raise ConfigError(
            f"hub.model_id={model_id} already holds files, which are not replaced: give a new name, such as "
            f"hub.model_id={model_id}-2."
        )
    return repository


def _file_names(repository: ModelInfo | None) -> set[str]:
    """Return the names of the files that someone has pushed to a repository."""
    return {file.rfilename for file in (repository and repository.siblings) or ()} - {GIT_ATTRIBUTES}


def _has_weights_of(repository: ModelInfo, folder: Path) -> bool:
    """Return whether a repository has all weights of a folder, which means that the reply to a push was lost."""
    checksums = {file.rfilename: file.lfs.sha256 for file in repository.siblings or () if file.lfs}
    weights = list(folder.rglob("*.safetensors"))
    return bool(weights) and all(checksum(path) == checksums.get(str(path.relative_to(folder))) for path in weights)


@contextmanager
def _hub_requests(model_id: str) -> Iterator[None]:
    """Turn any failure of a request to the hub about a model into a HubError."""
    try:
        with quiet_hub():
            yield
    except Exception as error:  # three more libraries raise errors of their own types
        raise HubError(f"The request to the hub about {model_id} failed: {_reason(error)}.") from error


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Let no request of an upload wait longer than that: by default the library waits for ever, and tries again.

    What is sent may take as long as it moves.
    """
    from huggingface_hub import hf_raise_for_status, set_client_factory
    from huggingface_hub.utils import _http

    make_client, begins = _http._GLOBAL_CLIENT_FACTORY, dict[tuple[object, ...], float]()
    answered = set[tuple[object, ...]]()

    def key_of(request: Any) -> tuple[object, ...]:
        return threading.get_ident(), request.method, str(request.url)

    def check_repeated(request: Any) -> None:
        if time.monotonic() - begins.setdefault(key_of(request), time.monotonic()) > seconds:
            raise TimeoutError(f"no answer within {seconds:g} seconds")

    def read(response: Any) -> None:
        if (key := key_of(response.request)) not in answered:  # the time until then was that of sending
            answered.add(key)
            begins[key] = time.monotonic()
        call_with_timeout(seconds, response.read)  # its own limit counts every read
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:  # for which the library waits as long as it is told
            hf_raise_for_status(response)

    def make_bounded_client() -> Any:
        client = make_client()
        client.timeout = seconds
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], check_repeated], "response": [*hooks["response"], read]}
        return client

    set_client_factory(make_bounded_client)
    try:
        yield
    finally:
        set_client_factory(make_client)


def _is_refusal(error: HubError) -> bool:
    """Return whether the hub has answered that it will not, for which trying again later is no help."""
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    return isinstance(cause, HfHubHTTPError) and cause.response.status_code in (400, 401, 403)


def _reason(error: BaseException) -> str:
    """Return briefly what went wrong, without upload URLs, which are signed, and without tokens."""
    from huggingface_hub.errors import HfHubHTTPError

    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in reversed(chain):
        if isinstance(link, HfHubHTTPError):
            status = f"the hub answered {link.response.status_code} {link.response.reason_phrase}"
            message = (link.server_message or "<").split("\n")[0]
            return status if message.startswith("<") else f"{status} ({_without_token(message)})"
    return _without_token(first_line(error))


def _without_token(message: str) -> str:
    return re.sub(r"hf_\w{10,}|Bearer \S+", "[token]", message[:200]).rstrip(".")

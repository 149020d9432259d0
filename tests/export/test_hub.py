"""Pushing to the hub: the real commands and library, against a server on this machine that speaks its language."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fork_server
import numpy as np
import pytest
import yaml
from conftest import REPO, launch_ranks, sample_rows, snapshot, start, write_jsonl
from hub_server import TOKEN, Hub, Repository, serve

from angle import AnglE
from angle.config import HubConfig, LoraConfig, ModelConfig, PoolingConfig, TrainConfig
from angle.config.build import build_config
from angle.errors import ConfigError, HubError
from angle.export.card_model import CardModel, SentenceTransformersSupport
from angle.export.hub import check_push, push_folder, stage_files
from angle.export.model_card import model_card
from angle.export.trained_run import TrainedRun
from angle.modeling.encoder import Encoder
from angle.training.loop import fit
from angle.training.publish import check_hub
from angle.training.run_folder import RunFolder
from angle.training.summary import summary

NAME = "user/my-encoder"
PUSH = ("hub.push=true", f"hub.model_id={NAME}")
SETTINGS = ("pooling.strategy=cls_avg", "model.prompt='Find this: {text}'")
RECORD: dict[str, Any] = {
    "command": ["/home/me/angle/train.py", "model.name_or_path=/home/me/bert", "hub.push=true"],
    "versions": {"python": "3.11"},
    "hardware": {"processes": 2, "gpu": None, "device": "cpu"},
    "git_commit": None,
    "texts": 10,
    "seconds": 1.0,
    "result": {
        "best_score": None, "best_step": None, "test_before": None, "test_after": None,
        "test_word_overlap": None,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """A hub, for processes of their own and for this one."""
    from huggingface_hub import close_session, constants

    with serve() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr("transformers.utils.hub._hf_api", None)  # which keeps the address that it was made with
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield hub
        close_session()


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub as new, with this process logged in."""
    for item in dataclasses.fields(Hub):
        if item.name != "url":
            setattr(server, item.name, getattr(Hub(), item.name))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A saved model of few parts."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def train(folder: Path, hub: Hub, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the shortest training on the files in `folder`, whose name must not get out."""
    data = [f"data.{role}.name_or_path={folder / role}.jsonl" for role in ("train", "test", "valid_sts")]
    common = ["data=files", *data, "train.max_steps=3", "train.batch_size=8", "train.output_dir=run"]
    return start("train.py", *common, *words, folder=folder, **hub.environment() | env)


def write_rows(folder: Path) -> None:
    for role, rows in {"train": 40, "test": 20, "valid_sts": 20}.items():
        write_jsonl(folder / f"{role}.jsonl", sample_rows("A", "train" if role == "train" else "test", rows))


def reads(content: bytes) -> dict[str, Any]:
    """Return the metadata of a card."""
    return dict(yaml.safe_load(content.decode().split("---\n")[1]))


@dataclasses.dataclass
class PushedRun:
    """A run that was pushed at the second try."""

    folder: Path
    hub: Hub
    failed: subprocess.CompletedProcess[str]
    """The command whose push was answered with an error."""
    run_files: dict[str, bytes | None]
    """The run folder after that."""
    retry: str
    """What it said to type."""
    done: subprocess.CompletedProcess[str]
    """That command."""

    @property
    def files(self) -> dict[str, bytes]:
        return self.hub.repositories[NAME].files

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "run" / "run.json").read_text()))


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PushedRun]:
    """`python train.py ... hub.push=true`, with a prompt and a pooling that sentence-transformers must be told of."""
    folder = tmp_path_factory.mktemp("nobody-knows")
    write_rows(folder)
    with serve() as hub:
        hub.fail_commits = 1
        failed = train(folder, hub, *PUSH, *SETTINGS)
        run_files = snapshot(folder / "run")
        (retry,) = re.findall(r"; to push it, type (python \S+/train.py .*)\n", failed.stderr)
        done = start(*shlex.split(retry)[1:], folder=folder, **hub.environment())
        yield PushedRun(folder, hub, failed, run_files, retry, done)


@pytest.mark.slow
def test_a_push_that_fails_costs_nothing_and_says_how_to_try_again(pushed: PushedRun) -> None:
    record = json.loads(pushed.run_files["run.json"] or b"")
    assert record["finished"] is True
    assert "pushed" not in record
    assert f"Error: {record['push_problem']}\n" == pushed.failed.stderr
    assert f"hub     {NAME}, once training is over, for you alone\n" in pushed.failed.stdout
    assert "Saved   run/best\n" in pushed.failed.stdout
    assert "Pushed" not in pushed.failed.stdout
    assert pushed.retry == f"python {REPO / 'train.py'} train.resume=run hub.push=true hub.model_id={NAME}"
    assert (pushed.failed.returncode, pushed.failed.stderr) == (
        1,
        f"Error: Pushing to {pushed.hub.url}/{NAME} failed: the hub answered 503 Service Unavailable (Too much to do, "
        f"[token]). The run is finished and its model is in run/best; to push it, type {pushed.retry}\n",
    )


@pytest.mark.slow
def test_a_run_is_pushed_once_as_it_was_saved(pushed: PushedRun) -> None:
    assert (pushed.done.returncode, pushed.done.stderr) == (0, "")
    assert f"Saved   run/best\nPushed  {pushed.hub.url}/{NAME}\n" in pushed.done.stdout
    assert pushed.record["pushed"] == {"model_id": NAME, "url": f"{pushed.hub.url}/{NAME}"}
    assert pushed.record["push_problem"] is None
    assert [(new["organization"], new["name"], new["visibility"]) for new in pushed.hub.created] == [
        ("user", "my-encoder", "private")
    ]
    assert len(pushed.hub.repositories[NAME].commits) == 1
    assert set(pushed.files) == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "angle_config.json", "tokenizer.json",
        "tokenizer_config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
        "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
    }  # fmt: skip
    for name in ("model.safetensors", "config.json", "angle_config.json", "tokenizer.json"):
        assert pushed.files[name] == pushed.run_files[f"best/{name}"]
    assert snapshot(pushed.folder / "run").keys() == pushed.run_files.keys()
    changed = {name for name, content in snapshot(pushed.folder / "run").items() if content != pushed.run_files[name]}
    assert changed == {"run.json"}


@pytest.mark.slow
def test_the_card_describes_the_run(pushed: PushedRun) -> None:
    card, result = pushed.files["README.md"].decode(), pushed.record["result"]
    metadata = reads(pushed.files["README.md"])
    assert metadata["library_name"] == "sentence-transformers"
    assert metadata["pipeline_tag"] == "sentence-similarity"
    assert metadata["tags"] == [
        "sentence-transformers", "sentence-similarity", "feature-extraction", "angle", "dataset_size:40",
        "loss:CoSENTLoss",
    ]  # fmt: skip
    assert not metadata.keys() & {"base_model", "datasets", "language", "license"}  # tiny, of files, is nobody's
    (index,) = metadata["model-index"]
    assert index["name"] == "my-encoder"
    assert {entry["dataset"]["name"]: entry["metrics"][0]["value"] for entry in index["results"]} == {
        "test rows that are not public": pytest.approx(result["test_after"], abs=1e-5),
        "validation rows that are not public": pytest.approx(result["best_score"], abs=1e-5),
    }
    valid, test = "| 20 validation rows that are not public", "| 20 test rows that are not public"
    assert f"{valid}, step {result['best_step']} | {100 * result['best_score']:.2f} | " in card
    assert f"{test} | {100 * result['test_after']:.2f} | " in card
    assert f"{test}, before training | {100 * result['test_before']:.2f} | " in card
    assert "| data | 40 training rows that are not public, format A |" in card
    assert "| length | 3 steps of 8 rows; 48 texts in " in card
    assert (
        "python train.py data=files data.train.name_or_path=FILE data.test.name_or_path=FILE "
        "data.valid_sts.name_or_path=FILE train.max_steps=3 train.batch_size=8 pooling.strategy=cls_avg "
        "'model.prompt='\"'\"'Find this: {text}'\"'\"''\n" in card
    )
    assert f"torch {pushed.record['versions']['torch']}" in card


@pytest.mark.slow
def test_neither_token_nor_local_paths_are_published(pushed: PushedRun) -> None:
    local_files = {name: content for name, content in snapshot(pushed.folder).items() if content is not None}
    assert len(local_files) > 15
    for name, content in (local_files | pushed.files).items():
        assert TOKEN.encode() not in content, name
    for done in (pushed.failed, pushed.done):
        assert TOKEN not in done.stdout + done.stderr
    for name, content in pushed.files.items():
        assert b"nobody-knows" not in content, name
        assert str(REPO).encode() not in content, name


@pytest.mark.slow
def test_the_card_s_own_code_loads_the_model_from_the_hub(pushed: PushedRun, tmp_path: Path) -> None:
    with_sentence_transformers, with_angle = re.findall(
        r"```python\n(.*?)```", pushed.files["README.md"].decode(), re.DOTALL
    )
    local = f'from angle import Encoder\nembeddings = Encoder.load("{pushed.folder / "run"}").encode(sentences)\n'
    script = "import numpy, sys\nfound = []\n" + "".join(
        f"{code}\nfound.append(numpy.asarray(embeddings))\n" for code in (with_sentence_transformers, local, with_angle)
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nnumpy.save(sys.argv[1], found)", str(tmp_path / "found.npy")],
        cwd=REPO,
        env=fork_server.environment(HF_HOME=str(tmp_path)) | pushed.hub.environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs_, local_, ours_ = np.load(tmp_path / "found.npy")
    commented = [line.removeprefix("# ") for line in with_sentence_transformers.splitlines() if line.startswith("# ")]
    assert len(commented) == 4
    assert done.stdout.splitlines() == commented
    assert np.abs(local_[0] - local_[1]).max() > 0.01
    np.testing.assert_array_equal(ours_, local_)
    np.testing.assert_allclose(theirs_, local_, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_same_command_again_pushes_nothing(pushed: PushedRun) -> None:
    num_requests = len(pushed.hub.requests)
    done = train(pushed.folder, pushed.hub, *PUSH, *SETTINGS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run holds this run already, finished.\n")
    assert f"Pushed  {pushed.hub.url}/{NAME} (by this run before)\n" in done.stdout
    assert len(pushed.hub.requests) == num_requests


@pytest.mark.slow
def test_two_processes_push_once(tmp_path: Path) -> None:
    write_rows(tmp_path)
    words = ["data=files", f"data.train.name_or_path={tmp_path / 'train.jsonl'}", "train.max_steps=2",
             "train.batch_size=4", "train.output_dir=run", *PUSH]  # fmt: skip
    with serve() as hub:
        first, second = launch_ranks([str(REPO / "train.py"), *words], tmp_path, **hub.environment())
        assert first.returncode == second.returncode == 0, first.stderr[-3000:]
        assert f"Saved   run/final\nPushed  {hub.url}/{NAME}\n" in first.stdout
        assert "Pushed " not in second.stdout
        assert len(hub.created) == len(hub.repositories[NAME].commits) == 1


@pytest.mark.slow
def test_push_settings_are_checked_before_training(tmp_path: Path) -> None:
    write_rows(tmp_path)
    with serve() as hub:
        hub.repositories[NAME] = Repository(True, {"model.safetensors": b"of somebody"})
        done = train(tmp_path, hub, *PUSH)
        assert (done.returncode, done.stdout, done.stderr) == (
            1,
            "",
            f"Error: hub.model_id={NAME} already holds files, which are not replaced: give a new name, such "
            f"as hub.model_id={NAME}-2.\n",
        )
        assert hub.repositories[NAME].files == {"model.safetensors": b"of somebody"}
    assert not (tmp_path / "run").exists()


def test_new_and_empty_repositories_can_be_pushed_to(hub: Hub) -> None:
    check_push(NAME, private=True)
    check_push("team/name", private=True)
    hub.repositories[NAME] = Repository(private=True)  # made on the hub's page, and empty
    check_push(NAME, private=True)
    assert not [request for request in hub.requests if not request.startswith("GET ")]


def test_without_a_token_no_request_is_made(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError) as error:
        check_push(NAME, private=True)
    assert str(error.value) == (
        "hub.push=true needs a token of the Hugging Face hub that may write: type hf auth login once, or set HF_TOKEN."
    )
    assert hub.requests == []


def test_being_offline_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as error:
        check_push(NAME, private=True)
    assert str(error.value) == (
        f"hub.push=true cannot reach {NAME} while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it, or leave "
        f"hub.push out, which can be added later to python train.py train.resume=RUN."
    )


def test_a_token_that_only_reads_is_refused(hub: Hub) -> None:
    hub.role = "read"
    with pytest.raises(ConfigError) as error:
        check_push(NAME, private=True)
    assert str(error.value) == (
        f"hub.push=true needs a token that may write, and this one may only read: make another on "
        f"{hub.url}/settings/tokens and type hf auth login."
    )


def test_a_token_that_the_hub_does_not_know_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigError) as error:
        check_push(NAME, private=True)
    assert str(error.value).startswith(
        f"hub.push=true cannot work now: The request to the hub about {NAME} failed: the hub answered 401 Unauthorized "
        f"(Invalid credentials in Authorization header). Try hf auth whoami, or "
    )
    assert "hf_wrong" not in str(error.value)


def test_the_name_of_somebody_else_is_refused(hub: Hub) -> None:
    with pytest.raises(ConfigError) as error:
        check_push("other/name", private=True)
    assert str(error.value) == (
        "hub.model_id=other/name cannot work: the token is one of user, who may push to user/ and team/; type for "
        "example hub.model_id=user/name."
    )


def test_a_public_repository_is_no_private_one(hub: Hub, model: Path) -> None:
    hub.repositories[NAME] = Repository(private=False)
    for push in (lambda: check_push(NAME, private=True), lambda: push_folder(model, NAME, exist_ok=True)):
        with pytest.raises(ConfigError) as error:
            push()
        assert str(error.value) == (
            f"hub.private=true cannot work with hub.model_id={NAME}, which exists already and is public: give a new "
            f"name, or type hub.private=false."
        )
    check_push(NAME, private=False)


def test_a_run_starts_without_a_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError) as error:
        check_push(NAME, private=True)
    assert str(error.value) == f"The request to the hub about {NAME} failed: [Errno 111] Connection refused."
    push = HubConfig(push=True, model_id=NAME)
    warning = check_hub(push, HubConfig())
    assert warning == f"{error.value} The run goes on, and tries to push to {NAME} at its end."
    assert check_hub(push, push) is None


def test_other_files_are_replaced_only_where_that_is_allowed(hub: Hub, model: Path) -> None:
    existing = {".gitattributes": b"", "modules.json": b"[]", "config.json": b"old", "1_Pooling/config.json": b"{}"}
    hub.repositories[NAME] = Repository(True, dict(existing))
    with pytest.raises(ConfigError, match="already holds files"):
        push_folder(model, NAME)
    assert hub.repositories[NAME].files == existing
    assert push_folder(model, NAME, exist_ok=True) == f"{hub.url}/{NAME}"
    assert hub.repositories[NAME].files == {
        ".gitattributes": b"", "config.json": b"{}", "model.safetensors": b"weights",
    }  # fmt: skip
    assert len(hub.repositories[NAME].commits) == 1


def test_a_push_whose_response_was_lost_is_complete(hub: Hub, model: Path) -> None:
    hub.lose_answers = 1
    with pytest.raises(HubError) as error:
        push_folder(model, NAME)
    assert str(error.value) == (
        f"Pushing to {hub.url}/{NAME} failed: the hub answered 504 Gateway Timeout (The gateway gave up)."
    )
    (model / "README.md").write_text("---\ntags: [a]\n---\n")
    push_folder(model, NAME)
    assert {"README.md", "model.safetensors"} < hub.repositories[NAME].files.keys()
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match="already holds files"):
        push_folder(model, NAME)


def test_files_pushed_by_others_since_the_check_are_not_replaced(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    hub.repositories[NAME] = Repository(private=True)
    create = HfApi.create_commit

    def late(*arguments: Any, **options: Any) -> Any:
        hub.repositories[NAME].files["model.safetensors"] = b"of another run"
        return create(*arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(HubError, match="the hub answered 412 Precondition Failed"):
        push_folder(model, NAME)
    assert hub.repositories[NAME].files["model.safetensors"] == b"of another run"


def test_a_finished_run_is_pushed_as_it_is_asked_for_now(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    config = build_config({"hub": {"push": True, "model_id": "user/first", "private": False}}, TrainConfig)
    run.create(config, config, RECORD | {"finished": True})
    run.replace("final", Encoder.load("tiny").save)
    resumed = {"train": {"resume": str(run.path)}, "hub": {"push": True, "model_id": NAME}}

    monkeypatch.setenv("RANK", "1")
    assert fit(build_config(resumed, TrainConfig)).pushed is None
    assert hub.requests == []
    monkeypatch.delenv("RANK")
    with run.locked(), pytest.raises(ConfigError, match="is in use"):
        fit(build_config(resumed, TrainConfig))

    result = fit(build_config(resumed, TrainConfig))
    assert (result.pushed, result.already_pushed, result.already_finished) == (f"{hub.url}/{NAME}", False, True)
    assert {name: repository.private for name, repository in hub.repositories.items()} == {NAME: True}
    result = fit(build_config({"train": {"resume": str(run.path)}}, TrainConfig))  # with what it was started with
    assert result.pushed == f"{hub.url}/user/first"
    assert hub.repositories["user/first"].private is False
    result = fit(build_config({"train": {"output_dir": str(run.path)}}, TrainConfig))
    assert (result.pushed, result.already_pushed) == (f"{hub.url}/user/first", True)
    assert "hub.push" not in summary(result, ["hub.push=true"])


def test_push_to_hub_from_python(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    angle = AnglE.from_pretrained("tiny")
    assert angle.push_to_hub(NAME) == f"{hub.url}/{NAME}"
    card = hub.repositories[NAME].files["README.md"].decode()
    assert "## Use" in card
    assert "## Training" not in card
    with pytest.raises(ConfigError, match="already holds files"):
        angle.truncate_layer(1).push_to_hub(NAME)
    angle.push_to_hub(NAME, exist_ok=True)
    encoder = Encoder.load(NAME).eval()
    assert encoder.embedding_config.layers == 1
    np.testing.assert_array_equal(encoder.encode(["a dog"]), angle.encode(["a dog"]))

    rows = [{"text": f"a dog {number}", "positive": f"the dog {number}"} for number in range(8)]
    short, run = {"train": {"max_steps": 1}}, str(tmp_path / "run")
    angle.fit(rows, output_dir=run, config=short, push_to_hub=True, hub_model_id="user/other", hub_private_repo=False)
    repository = hub.repositories["user/other"]
    assert repository.private is False
    assert "| data | 8 training rows that are not public, format C |" in repository.files["README.md"].decode()
    angle.push_to_hub("user/third")
    assert "## Training" in hub.repositories["user/third"].files["README.md"].decode()


def staged_card(encoder: Encoder, tmp_path: Path, base: str = "tiny", **settings: Any) -> tuple[Path, str]:
    """Return what is laid out of an encoder to be pushed, and its card."""
    encoder.save(tmp_path / "saved")
    config = build_config({"model": {"name_or_path": base}, **settings}, TrainConfig)
    (tmp_path / "staged").mkdir()
    pushed = stage_files(tmp_path / "saved", tmp_path / "staged", NAME, base)
    return tmp_path / "staged", model_card(pushed, TrainedRun(config, RECORD))


def test_the_path_of_a_local_base_is_not_published(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "home" / "bert"
    base.parent.mkdir()
    Encoder.load("tiny").save(base)
    encoder = Encoder.load(ModelConfig(str(base)), lora=LoraConfig(enabled=True, r=4)).eval()
    folder, card = staged_card(encoder, tmp_path, str(base), lora={"enabled": True, "r": 4})
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "angle_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    for text in (card, *(path.read_text() for path in folder.glob("*.json"))):
        assert str(tmp_path) not in text
        assert "local_files_only" not in text
    assert 'Encoder.load(ModelConfig("BASE", adapter="user/my-encoder")).encode(' in card
    assert "`BASE` stands for the folder of what the adapters were made for: a model that is not on the hub (" in card
    assert "(BertModel, 2 layers, hidden size 128, 321,920 weights)." in card
    assert "python convert.py model.name_or_path=BASE model.adapter=user/my-encoder output_dir=" in card
    assert "python train.py model.name_or_path=MODEL\n" in card
    assert "| LoRA | rank 4, alpha 64, dropout 0.1 |" in card
    assert "base_model" not in reads(card.encode())
    assert "## Scores" not in card

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(base.parent)
    push_folder(folder, NAME)
    loaded = Encoder.load(ModelConfig("bert", adapter=NAME)).eval()  # as the card has it
    assert (tmp_path / "cache" / "models--user--my-encoder").is_dir()
    np.testing.assert_array_equal(loaded.encode(["a fox"]), encoder.encode(["a fox"]))


def test_padding_side_for_sentence_transformers_is_right(tmp_path: Path) -> None:
    encoder = Encoder.load(ModelConfig("tiny", padding_side="left"), PoolingConfig("last"))
    encoder.save(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    (tmp_path / "staged").mkdir()
    stage_files(tmp_path / "saved", tmp_path / "staged", NAME, "tiny")
    assert json.loads((tmp_path / "staged" / "tokenizer_config.json").read_text())["padding_side"] == "right"
    assert json.loads(file.read_text())["padding_side"] == "left"
    assert Encoder.load(str(tmp_path / "staged")).embedding_config == encoder.embedding_config


def test_an_adapter_of_a_model_on_the_hub_can_be_converted() -> None:
    model = CardModel(
        NAME,
        Encoder.load("tiny").embedding_config,
        "BAAI/bge-small-en-v1.5",
        has_adapters=True,
        hidden_size=None,
        sentence_transformers=SentenceTransformersSupport.CONVERTED,
    )
    card = model_card(model, TrainedRun(TrainConfig(), RECORD))
    assert reads(card.encode())["library_name"] == "peft"
    assert reads(card.encode())["base_model"] == "BAAI/bge-small-en-v1.5"
    assert 'Encoder.load("user/my-encoder").encode(' in card
    assert "`python convert.py model.name_or_path=user/my-encoder output_dir=my-encoder` merges the adapters" in card


def test_hub_names_and_settings_in_the_card(tmp_path: Path) -> None:
    encoder = Encoder.load("tiny")
    data = {"train": {"name_or_path": ["BAAI/pairs.v1", "/data/x/more.jsonl"], "subset": "en"}}
    _, card = staged_card(encoder, tmp_path, "BAAI/bge-small-en-v1.5", data=data, train={"mixed_precision": "bf16"})
    metadata = reads(card.encode())
    assert (metadata["base_model"], metadata["datasets"]) == ("BAAI/bge-small-en-v1.5", ["BAAI/pairs.v1"])
    assert "model-index" not in metadata
    assert "encoder from [BAAI/bge-small-en-v1.5](https://huggingface.co/BAAI/bge-small-en-v1.5), trained with" in card
    assert "| data | training rows of BAAI/pairs.v1 (en train) and of others that are not public, format auto |" in card
    assert "| precision | bf16 |" in card
    assert "/data/x" not in card


@pytest.mark.parametrize(
    ("prompt", "pooling", "code"),
    [
        ("{topic}: {text}", "avg", '.encode(sentences, [{"topic": "..."}] * len(sentences))'),
        (None, "3", ".encode(sentences)"),
    ],
)
def test_the_card_names_what_sentence_transformers_does_not_support(
    tmp_path: Path, prompt: str | None, pooling: str, code: str
) -> None:
    encoder = Encoder.load(ModelConfig("tiny", prompt=prompt), PoolingConfig(pooling))
    folder, card = staged_card(encoder, tmp_path)
    assert not (folder / "modules.json").exists()
    assert code in card
    assert "It loads in angle-hydra only" in card
    assert reads(card.encode())["library_name"] == "transformers"


def test_the_card_omits_the_command_of_another_program(tmp_path: Path) -> None:
    encoder = Encoder.load("tiny")
    encoder.save(tmp_path / "saved")
    (tmp_path / "staged").mkdir()
    pushed = stage_files(tmp_path / "saved", tmp_path / "staged", NAME, "tiny")
    for command, expected in {
        ("/home/me/mine.py", "--password=x"): None,
        (): None,
        ("train.py", "model=bert_base", "++model.prompt='a / b: {text}'", "tracking.entity=me", "hydra.run.dir=/x"): (
            "The command:\n\n```bash\npython train.py model=bert_base 'model.prompt='\"'\"'a / b: {text}'\"'\"''\n"
        ),
        ("train.py", "-m", "data.train.name_or_path=[~/a.csv,../b/c.gz,BAAI/x-v1.5]", "loss.ibn_w=1,2"): (
            "One of the runs of this sweep:\n\n```bash\npython train.py -m "
            "'data.train.name_or_path=[FILE,FILE,BAAI/x-v1.5]' loss.ibn_w=1,2\n"
        ),
    }.items():
        card = model_card(pushed, TrainedRun(TrainConfig(), RECORD | {"command": list(command)}))
        assert (expected in card) if expected else ("python train.py" not in card and "password" not in card)

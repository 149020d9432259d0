"""A hub that does not work: nobody waits for it longer than `hub.timeout`, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import faulty_server
import hub_server
import pytest

from angle.config import HubConfig
from angle.errors import HubError
from angle.export.hub import check_push, push_folder
from angle.training.publish import check_hub

NAME = "user/my-encoder"


@pytest.fixture(params=faulty_server.FAULTS)
def faulty_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make a server that does not work the hub of this process, and return how it fails."""
    from huggingface_hub import close_session, constants

    with faulty_server.serve(request.param) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_thisIsTheOneThatNobodyMaySee")
        close_session()
        yield request.param
    close_session()


def test_training_does_not_wait_for_it(faulty_hub: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    warning = check_hub(HubConfig(push=True, model_id=NAME, timeout=0.5), HubConfig())
    assert warning is not None
    assert warning.startswith(f"The request to the hub about {NAME} failed: ")
    assert warning.endswith(f"The run goes on, and tries to push to {NAME} at its end.")
    assert "hf_" not in warning
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(HubError):
        push_folder(tmp_path, NAME, timeout=0.5)
    assert time.monotonic() - begin < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breaks_at", "fault"),
    [
        *(("/preupload", fault) for fault in ("refuses", "hangs", "half an answer", "500", "resets")),
        *((request, "429 for an hour") for request in ("/preupload", "/objects/batch", "/large")),
        *((request, "answers for ever") for request in ("repos/create", "/preupload", "/large", "/commit")),
        *((request, "hangs") for request in ("/large", "/commit")),
    ],
)
def test_a_push_does_not_wait_for_it_either(
    breaks_at: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import close_session, constants, get_session

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with hub_server.serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        close_session()
        check_push(NAME, private=True)
        hub.fault, hub.breaks_at = fault, breaks_at
        begin = time.monotonic()
        with pytest.raises(HubError):
            push_folder(tmp_path, NAME, timeout=0.5)
        assert time.monotonic() - begin < 4
        assert get_session().timeout.read is None  # as it was
    close_session()

"""Pushing a finished run's model to the hub: once, by one process, and never at the expense of the run."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from angle.config import HubConfig
from angle.distributed.environment import is_main_process, script_command
from angle.errors import ConfigError, HubError
from angle.export.hub import check_push, push_model
from angle.export.trained_run import read_trained_run
from angle.files import relative_to_cwd
from angle.modeling.locations import check_unchanged, locate_model
from angle.training.result import Result
from angle.training.run_folder import RunFolder


def check_hub(hub: HubConfig, started_with: HubConfig) -> str | None:
    """Check before training, as far as possible, that the model can be pushed.

    The check runs only if the push is newly requested: a hub that is down must not keep a killed run from resuming,
    because nothing is lost by pushing later.

    Args:
        hub: the settings as requested now.
        started_with: the settings as requested when the run was started; the defaults for a new run.

    Returns:
        What to warn of if the hub is away: the end tries again.

    Raises:
        ConfigError: what `check_push` refuses.

    """
    if hub.push and hub != started_with:
        try:
            check_push(str(hub.model_id), private=hub.private, timeout=hub.timeout)
        except HubError as error:
            return f"{error} The run goes on, and tries to push to {hub.model_id} at its end."
    return None


def publish(folder: RunFolder, hub: HubConfig, result: Result) -> Result:
    """Push the best model of a finished run, or the final one if none was selected, if requested and not done yet.

    Returns:
        `result`, with the model's URL, or with the reason why the push failed and how to retry.

    """
    earlier_push = folder.record().get("pushed")
    if earlier_push is not None and (not hub.push or earlier_push["model_id"] == hub.model_id):
        return replace(result, pushed=earlier_push["url"], already_pushed=True)
    if not hub.push:
        return result
    model_id, model = str(hub.model_id), Path(locate_model(str(folder.path)))
    trained = read_trained_run(folder.path, hub)
    try:
        check_unchanged(str(model))
        base = trained.config.model.name_or_path
        url = push_model(
            model, model_id, base, trained, private=hub.private, example=trained.example, timeout=hub.timeout
        )
    except (ConfigError, HubError, OSError) as error:
        run = shlex.quote(f"train.resume={relative_to_cwd(folder.path)}")
        retry = f"{run} hub.push=true hub.model_id={model_id}{'' if hub.private else ' hub.private=false'}"
        problem = (
            f"{error} The run is finished and its model is in {relative_to_cwd(model)}; to push it, type "
            f"python {script_command('train.py')} {retry}"
        )
        folder.update(push_problem=problem)
        return replace(result, push_problem=problem)
    folder.update(pushed={"model_id": model_id, "url": url}, push_problem=None)
    return replace(result, pushed=url)


def publish_finished(folder: RunFolder, hub: HubConfig, result: Result) -> Result:
    """Publish a run that was already finished; the processes have not joined each other yet, so rank 0 does it.

    Raises:
        ConfigError: another process is working in the folder.

    """
    if not is_main_process():
        return result
    with folder.locked() if hub.push else nullcontext():
        return publish(folder, hub, result)

"""From a command line to a validated configuration: Hydra, with clearer error messages than its own."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from angle.cli.arguments import check_arguments, table_of_groups
from angle.cli.sweep import Job, check_jobs, comparison, only, output_setting, slug, varying
from angle.config import ConvertConfig, TrainConfig
from angle.config.build import Config, build_config
from angle.distributed.environment import (
    is_local_main_process,
    is_main_process,
    is_multi_node,
    launch_time,
    print_once,
    world_size,
)
from angle.errors import ConfigError, DataError, HubError, TrainingError

USER_ERRORS = (ConfigError, DataError, TrainingError)

#: Seconds within which a launcher that lost a process has ended the others: it polls ten times a second.
PATIENCE = 3


def launch(task: Callable[[Config], float | None], schema: type[Config], name: str, conf: Path) -> None:
    """Compose the configuration `name` from the folder `conf` and the command line, and run `task` on it.

    A sweep (-m) runs it once per job. A user error ends the program with one sentence and exit code 1.
    """
    from hydra import version
    from hydra._internal.utils import _run_hydra, get_args_parser
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    # Cached, so that every look-up gives the same launch time.
    OmegaConf.register_new_resolver("launch_time", launch_time, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("groups", lambda: table_of_groups(schema, conf), replace=True)
    OmegaConf.register_new_resolver("slug", lambda words: slug(only(words, keys)), replace=True)

    jobs: list[Job] = []
    keys: set[str] = set()

    def job(composed: Any) -> float | None:
        hydra_config = HydraConfig.get()
        folder = where = hydra_config.runtime.output_dir
        words = " ".join(only(hydra_config.overrides.task, keys))
        if hydra_config.mode is RunMode.MULTIRUN:
            print_once(f"\nJob {hydra_config.job.num}  {words}")
        score, failed, trained = None, True, False
        try:
            config = build_config(composed, schema)
            setting, given = output_setting(config)
            if given is None and not isinstance(config, ConvertConfig):
                target = config.train if isinstance(config, TrainConfig) else config
                target.output_dir = given = _shortest(agreed_on(folder, setting))
            where = (config.train.resume if isinstance(config, TrainConfig) else None) or given or folder
            score = task(config)
            failed, trained = False, isinstance(config, TrainConfig) and not config.train.dry_run
        except USER_ERRORS as error:
            _complain(error)
            if world_size() > 1:  # its next job would receive what the others still send for this one
                sys.exit(1)
        except HubError as error:
            _complain(error)
            score = error.score  # the job is finished, only its push failed
        except BrokenPipeError:
            _stop_writing()
        except Exception:
            if hydra_config.mode is not RunMode.MULTIRUN or world_size() > 1:
                raise
            traceback.print_exc()  # the other jobs of a sweep may still succeed
        finally:
            if is_main_process():
                _remove_if_empty(Path(folder))
        jobs.append(Job(words, where, score, failed, trained))
        return score

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us, to turn them into one sentence
    with errors_as_sentences():
        try:
            # As hydra.main does, which would read sys.argv: that stays as typed, for all who report it.
            version.setbase("1.3")
            parser = get_args_parser()
            arguments = parser.parse_args(check_arguments(sys.argv[1:], schema, conf))
            if arguments.multirun:
                check_jobs(arguments.overrides, schema, name, conf)
                keys |= varying(arguments.overrides)
            from angle.tracking.console import notes_once

            with notes_once():
                _run_hydra(arguments, parser, job, str(conf), name)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(". ".join(str(error).split("\n")[:2])) from None
        if len(jobs) > 1:
            print_once(f"\n{comparison(jobs)}")
        if world_size() > 1:
            from angle.distributed.process_group import shutdown_distributed

            shutdown_distributed()
    if any(job.failed for job in jobs):
        sys.exit(1)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the program with one sentence and exit code 1 on a user error."""
    try:
        yield
    except (*USER_ERRORS, HubError) as error:
        sys.exit(_complain(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report it
    except BrokenPipeError:
        _stop_writing()


def named_settings() -> set[str]:
    """Return the settings that this job's command line names, whatever their values; for a group, its `enabled`."""
    from hydra.core.hydra_config import HydraConfig

    names = {word.lstrip("+~").partition("=")[0] for word in HydraConfig.get().overrides.task}
    return names | {f"{name}.enabled" for name in names}


def check_model_is_named(script: str) -> None:
    """Raise ConfigError if the command line names no model; the default is only the untrained one for a first try."""
    if named_settings().isdisjoint(("model", "model.name_or_path")):
        raise ConfigError(
            f"model.name_or_path is missing: python {script} model.name_or_path=RUN takes a run folder, a folder with "
            f"weights or a name on the hub."
        )


def _stop_writing() -> NoReturn:
    """Exit quietly with the shells' code for a broken pipe: the reader, such as `head`, has stopped reading."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # swallow what is flushed at exit
    sys.exit(141)


def _complain(error: Exception) -> int:
    """Print an error on the console, once per machine if the first process meets it too."""
    if not is_local_main_process():
        time.sleep(PATIENCE)  # if the first process meets it too, it prints it, and the launcher then ends this one
    print(f"Error: {error}", file=sys.stderr, flush=True)
    if (last_words := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:  # the launcher's message ends with it
        Path(last_words).write_text(json.dumps({"message": str(error), "timestamp": int(time.time())}))
    return 1


def _shortest(folder: str) -> str:
    relative = os.path.relpath(folder)
    return folder if relative.startswith("..") else relative


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder that Hydra created, and its empty parents, if nothing was written to it."""
    for candidate in [folder, *folder.parents][:3]:
        try:
            candidate.rmdir()
        except OSError:
            return


def agreed_on(folder: str, setting: str = "train.output_dir") -> str:
    """Return `folder`, the default for a setting that was not given, if all processes agree on it.

    Raises:
        ConfigError: its name contains the launch time, which differs between machines.

    """
    if is_multi_node() and launch_time() in folder:
        raise ConfigError(
            f"{setting} is missing: several machines would each make up a folder of their own. Give one on a disk that "
            f"they share, the same to all."
        )
    return folder

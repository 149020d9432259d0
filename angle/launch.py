"""From a command line to a validated configuration: Hydra, with clearer error messages than its own."""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from angle.config import ConvertConfig, TrainConfig
from angle.errors import ConfigError, DataError, HubError, TrainingError, nearest
from angle.launcher import is_first_here, is_main_process, launch_time, launched, print_once, spans_machines
from angle.settings import (
    Config,
    build_config,
    check_value,
    group_given_a_value,
    group_names,
    kinds,
    unknown_key,
    written,
)
from angle.sweep import Job, check_jobs, comparison, only, output_setting, slug, varying

USER_ERRORS = (ConfigError, DataError, TrainingError)

#: Seconds within which a launcher that lost a process has ended the others: it polls ten times a second.
PATIENCE = 3

#: The folder in conf/ that is not a group: its files are for `accelerate launch`.
NO_GROUP = "accelerate"


def launch(task: Callable[[Config], float | None], schema: type[Config], name: str, conf: Path) -> None:
    """Compose the configuration `name` from the folder `conf` and the command line, and run `task` on it.

    A sweep (-m) runs it once per job. A user error ends the program with one sentence and exit code 1.
    """
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    # Cached, so that every look-up gives the same launch time.
    OmegaConf.register_new_resolver("launch_time", launch_time, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("groups", lambda: _table_of_groups(schema, conf), replace=True)
    OmegaConf.register_new_resolver("slug", lambda words: slug(only(words, keys)), replace=True)

    jobs: list[Job] = []
    keys: set[str] = set()
    said: set[str] = set()

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
            if hydra_config.mode is RunMode.MULTIRUN and isinstance(config, TrainConfig):
                from angle.training.notes import leave_out

                leave_out(said)
            score = task(config)
            failed, trained = False, isinstance(config, TrainConfig) and not config.train.dry_run
        except USER_ERRORS as error:
            _complain(error)
            if launched() > 1:  # its next job would receive what the others still send for this one
                sys.exit(1)
        except HubError as error:
            _complain(error)
            score = error.score  # the job is finished, only its push failed
        except BrokenPipeError:
            _stop_writing()
        except Exception:
            if hydra_config.mode is not RunMode.MULTIRUN or launched() > 1:
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
            sys.argv[1:] = check_arguments(sys.argv[1:], schema, conf)
            known, _ = get_args_parser().parse_known_intermixed_args()
            if known.multirun:
                check_jobs(known.overrides, schema, name, conf)
                keys |= varying(known.overrides)
            hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(". ".join(str(error).split("\n")[:2])) from None
        if len(jobs) > 1:
            print_once(f"\n{comparison(jobs)}")
        if launched() > 1:
            from angle.processes import leave_others

            leave_others()
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


def check_arguments(arguments: list[str], schema: type, conf: Path) -> list[str]:
    """Check the words of a command line before Hydra composes them, and return them in the form that Hydra accepts.

    Raises:
        ConfigError: a word sets nothing, a group has no such option, or a value has the wrong type.

    """
    from hydra._internal.utils import get_args_parser

    known, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        last_parts = {name.rsplit(".", 1)[-1]: name for name in kinds(schema)}
        near = difflib.get_close_matches(unknown[0].strip("-").split("=")[0], last_parts, n=1)
        hint = f"; did you mean {last_parts[near[0]]}?" if near else "."
        raise ConfigError(f"{unknown[0]} is no flag: a setting is written without dashes, as group.name=value{hint}")
    words = [f"++{word}" if _check_word(word, schema, conf, many=known.multirun) else word for word in known.overrides]
    flags = [word for word in arguments if word not in known.overrides]
    return [*flags, *words]  # Hydra accepts no flag between two settings


def _check_word(word: str, schema: type, conf: Path, *, many: bool) -> bool:
    """Check a word, and return whether Hydra must be told that it adds entries to a mapping."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    if "=" not in word and not word.startswith("~"):
        example = f"{word}=..." if word in kinds(schema) else f"model.name_or_path={word}"
        raise ConfigError(f"{word} sets nothing: write name=value, for example {example}")
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(word)
    except HydraException:
        raise ConfigError(
            f"{word} is no setting: write name=value, and quote values with spaces, braces or "
            f"commas, for example 'model.prompt=\"Query: {{text}}\"'."
        ) from None
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return False
    if override.package is not None:
        raise ConfigError(f"{word} cannot work: a group has one place only; write {key}={override.value()}.")
    values = [override.value()]
    if override.is_delete():
        values = []
    elif override.is_sweep_override():
        values = [parser.parse_override(f"{key}={value}").value() for value in override.sweep_string_iterator()]
    groups = set(_groups(schema, conf))
    known = kinds(schema)
    in_mapping = dict in (known.get(key), known.get(key.rpartition(".")[0]))
    if key not in groups | group_names(schema) | known.keys() and not in_mapping:
        group = nearest(key, groups) if "." not in key else ""
        raise ConfigError(f"There is no group {key}{group}" if group else unknown_key(key, schema))
    for value in values:
        if key in groups:
            _check_option(key, value, conf)
        elif key not in group_names(schema):
            if not (isinstance(value, str) and "${" in value):
                check_value(key, value, schema)
        elif not isinstance(value, Mapping):  # a mapping sets some of the group's settings
            raise ConfigError(group_given_a_value(key, value, schema))
    if override.is_sweep_override() and not many:
        raise ConfigError(f"{word} names several values: add -m to run a job for each, or write one.")
    return in_mapping and override.type is OverrideType.CHANGE


def _groups(schema: type, conf: Path) -> list[str]:
    """Return the groups of presets that a script has."""
    groups = {folder.name for folder in conf.iterdir() if folder.is_dir() and folder.name != NO_GROUP}
    return sorted(groups if schema is TrainConfig else groups & group_names(schema))


def _table_of_groups(schema: type, conf: Path) -> str:
    return "\n".join(f"{group}: {', '.join(_options(conf, group))}" for group in _groups(schema, conf))


def _options(conf: Path, group: str) -> list[str]:
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def _check_option(group: str, value: Any, conf: Path) -> None:
    options = _options(conf, group)
    if value not in options:
        other = {
            "model": f" For any other: model.name_or_path={value}",
            "data": f" For your own: data=files data.train.name_or_path={value}",
        }
        raise ConfigError(
            f"{group}={written(value)} is no option{nearest(str(value), options) or '.'} "
            f"{group} can be: {', '.join(options)}.{other.get(group, '')}"
        )


def _stop_writing() -> NoReturn:
    """Exit quietly with the shells' code for a broken pipe: the reader, such as `head`, has stopped reading."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # swallow what is flushed at exit
    sys.exit(141)


def _complain(error: Exception) -> int:
    """Print an error on the console, once per machine if the first process meets it too."""
    if not is_first_here():
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
    if spans_machines() and launch_time() in folder:
        raise ConfigError(
            f"{setting} is missing: several machines would each make up a folder of their own. Give one on a disk that "
            f"they share, the same to all."
        )
    return folder

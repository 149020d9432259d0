"""From a command line to a validated configuration: Hydra, with clearer error messages than its own."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any, cast

from angle.cli.arguments import check_arguments, table_of_groups
from angle.cli.help import details, overview
from angle.cli.jobs import JobRunner
from angle.cli.launchers import check_installed
from angle.cli.replaced_sources import let_words_replace_sources
from angle.cli.sweep import check_jobs, check_search, default_values, select_overrides, slug, swept_keys
from angle.cli.sweep_end import conclude
from angle.cli.sweeper import Sweeper
from angle.cli.user_errors import exit_on_user_error
from angle.config import SWEEP_FILE, TrainConfig
from angle.config.build import Config, flatten_groups
from angle.distributed.environment import (
    check_launcher_environment,
    is_main_process,
    launch_time,
    script_command,
    world_size,
)
from angle.errors import ConfigError
from angle.sweeps.record import TABLE_FILE, JobResult
from angle.sweeps.table import comparison_table
from angle.terminal import announce, print_once, wrapped_command


def launch(task: Callable[[Config], float | None], schema: type[Config], name: str, conf: Path) -> None:
    """Compose the configuration `name` from the folder `conf` and the command line, and run `task` on it.

    A sweep (-m) runs it once per job. A user error ends the program with one sentence and exit code 1.
    """
    from hydra._internal.utils import get_args_parser

    with exit_on_user_error():
        check_launcher_environment()
        words = check_arguments(sys.argv[1:], schema, conf)
        arguments = get_args_parser().parse_args(words)
        swept = swept_keys(arguments.overrides) if arguments.multirun else set()
        _register(schema, name, conf, swept)
        if arguments.help:
            print(_help(arguments.overrides, schema, name, conf))
            return
        runner = JobRunner(task, schema, swept)
        if arguments.multirun:
            announce("checking the settings of all jobs")
        with _explained_errors():
            may_search = arguments.multirun and schema is TrainConfig
            search = check_search(arguments.overrides, name, conf) if may_search else None
            if search is not None:
                swept.clear()
                swept.update(search.keys)
            is_grid = arguments.multirun and search is None
            jobs = check_jobs(arguments.overrides, schema, name, conf) if is_grid else []
            if may_search:
                runner.defaults = default_values(arguments.overrides, swept, name, conf)
        sweeper = Sweeper(runner, jobs, search)
        from angle.tracking.console import without_repetitions

        try:
            with without_repetitions():
                _run_hydra(words, sweeper, name, conf)
        except KeyboardInterrupt:
            if runner.sweep_folder is not None:
                print_once(_interrupted(runner, sweeper.outcomes()))
            raise
        results = sweeper.results if arguments.multirun else runner.results
        if len(results) > 1:
            print_once(f"\n{comparison_table(results)}")
            if schema is TrainConfig and is_main_process() and runner.sweep_folder is not None:
                for text in conclude(Path(runner.sweep_folder), _written(runner)):
                    print_once(text)
            else:
                print_once(_written(runner))
        if world_size() > 1:
            from angle.distributed.process_group import shutdown_distributed

            shutdown_distributed()
    if any(result.error is not None for result in results):
        sys.exit(1)


def _written(runner: JobRunner[Any]) -> str:
    """Return where the table of a sweep is saved."""
    return f"Saved   {runner.sweep_folder}/{SWEEP_FILE}, {TABLE_FILE}"


def _interrupted(runner: JobRunner[Any], results: Sequence[JobResult]) -> str:
    """Return what an interrupted sweep has found, and the command that goes on with all of it."""
    typed = [shlex.quote(word) for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
    command = ["python", script_command(Path(sys.argv[0]).name), *typed]
    command += [shlex.quote(f"hydra.sweep.dir={runner.sweep_folder}")]
    table = f"{comparison_table(results)}\n{_written(runner)}\n\n" if results else ""
    return f"\n{table}The sweep was interrupted; to go on with all of it, type\n{wrapped_command(command)}"


def _register(schema: type[Config], name: str, conf: Path, swept: set[str]) -> None:
    """Make known to Hydra what the files in conf/ refer to: the schema and the resolvers of ${...}."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    let_words_replace_sources()
    # Cached, so that every look-up gives the same launch time.
    OmegaConf.register_new_resolver("launch_time", launch_time, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("groups", lambda: table_of_groups(schema, conf), replace=True)
    OmegaConf.register_new_resolver("slug", lambda words: slug(select_overrides(words, swept)), replace=True)


def _help(words: list[str], schema: type[Config], name: str, conf: Path) -> str:
    """Return what --help prints; Hydra's own version first lists all of its groups, which takes over a second.

    A word without a "=" is a group or a setting, of which all is told: --help loss train.batch_size.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    topics = [word for word in words if "=" not in word]
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose(name, overrides=[word for word in words if "=" in word], return_hydra_config=True)
    template = Template(config.hydra.help.template)
    with open_dict(config):
        del config["hydra"]
    values = flatten_groups(cast(dict[str, Any], OmegaConf.to_container(config)), schema)
    return details(schema, topics, values, conf) if topics else template.substitute(CONFIG=overview(schema, values))


def _run_hydra(words: list[str], sweeper: Sweeper, name: str, conf: Path) -> None:
    """Do what `hydra.main` does, but with `words` in place of `sys.argv`, which stays what the user typed."""
    from hydra import version
    from hydra._internal.utils import _run_hydra, get_args_parser

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, to turn them into one sentence
    version.setbase("1.3")
    parser = get_args_parser()
    arguments = parser.parse_args(words)
    with _explained_errors(), _composing_once(), _sweeping_with(sweeper):
        _run_hydra(arguments, parser, sweeper.runner.run, str(conf), name)


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Turn an error of Hydra's into one sentence.

    Raises:
        ConfigError: what a command line or a preset says cannot be composed, or needs an extra.

    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if (launcher := re.search(r"'hydra/launcher/(\w+)'", str(error))) is not None:
            check_installed("launcher", launcher[1])
        raise ConfigError(". ".join(str(error).split("\n")[:2])) from None


@contextmanager
def _composing_once() -> Iterator[None]:
    """Spare Hydra composing everything twice: the first time it only looks for hydra.mode, in place of the flag -m."""
    from hydra._internal.hydra import Hydra

    get_mode = Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


@contextmanager
def _sweeping_with(sweeper: Sweeper) -> Iterator[None]:
    """Let Hydra give sweeps to this project's sweeper, which it would only take from a package called hydra_plugins."""
    from hydra.core.plugins import Plugins

    instantiate_sweeper = Plugins.instantiate_sweeper

    def set_up(_: Plugins, **parts: Any) -> Any:
        sweeper.setup(**parts)
        return sweeper

    Plugins.instantiate_sweeper = set_up  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Plugins.instantiate_sweeper = instantiate_sweeper  # type: ignore[method-assign]


def overridden_settings() -> set[str]:
    """Return the settings that this job's command line sets, whatever their values; for a group, its `enabled`."""
    from hydra.core.hydra_config import HydraConfig

    keys = {word.lstrip("+~").partition("=")[0] for word in HydraConfig.get().overrides.task}
    return keys | {f"{key}.enabled" for key in keys}


def require_model(script: str) -> None:
    """Raise ConfigError if the command line names no model: the default is untrained, and only for trying things."""
    if overridden_settings().isdisjoint(("model", "model.name_or_path")):
        raise ConfigError(
            f"model.name_or_path is missing: python {script} model.name_or_path=RUN takes a run folder, a folder with "
            f"weights or a name on the hub."
        )

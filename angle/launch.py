"""From a command line to a checked configuration: Hydra's part, and what its own messages leave unsaid."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from angle.config import (
    ConvertConfig,
    EvaluateConfig,
    TrainConfig,
    build_config,
    explain,
    setting_names,
    unknown_key,
)
from angle.errors import ConfigError, DataError, TrainingError, nearest

Config = TypeVar("Config", TrainConfig, EvaluateConfig, ConvertConfig)

#: Longest name of a sweep's job folder: file systems stop at 255 bytes.
SLUG_LENGTH = 100


def launch(task: Callable[[Config], float | None], schema: type[Config], name: str, conf: Path) -> None:
    """Compose the configuration `name` from the folder `conf` and the command line, and run `task` on it.

    A sweep (-m) runs it once a job. What is wrong on the user's side ends in one sentence and exit code 1.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("launch_time", _launch_time, replace=True)
    OmegaConf.register_new_resolver("slug", _slug, replace=True)

    def job(composed: Any) -> float | None:
        hydra_config = HydraConfig.get()
        folder = hydra_config.runtime.output_dir
        if hydra_config.mode is RunMode.MULTIRUN and _is_main_process():
            print(f"\nJob {hydra_config.job.num}  {' '.join(hydra_config.overrides.task)}", flush=True)
        try:
            config = build_config(composed, schema)
            target = config.train if isinstance(config, TrainConfig) else config
            if target.output_dir is None and not isinstance(config, ConvertConfig):
                target.output_dir = _shortest(folder)
            return task(config)
        except (ConfigError, DataError, TrainingError) as error:
            sys.exit(_complain(error))
        finally:
            _remove_if_empty(Path(folder))

    try:
        check_overrides(sys.argv[1:], schema, conf)
    except ConfigError as error:
        sys.exit(_complain(error))
    hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(job)()


def check_overrides(arguments: list[str], schema: type, conf: Path) -> None:
    """Check the words of a command line before Hydra composes them.

    Raises:
        ConfigError: a word that sets nothing, an option that a group does not have, or a value of another type.

    """
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    words = get_args_parser().parse_known_args(arguments)[0].overrides
    groups = {str(folder.relative_to(conf)) for folder in conf.rglob("*") if folder.is_dir()}
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            raise ConfigError(
                f"{word} is no setting: write name=value, and quote values with spaces, braces or "
                f"commas, for example 'model.prompt=\"Query: {{text}}\"'."
            ) from None
        key = override.key_or_group
        if key.startswith("hydra"):
            continue
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
        if key in groups:
            for value in values if not override.is_delete() else []:
                _check_option(key, value, conf)
        else:
            for value in values if not override.is_delete() else [None]:
                _check_setting(
                    key,
                    value,
                    schema,
                    groups,
                    check_value=not override.is_delete() and not override.is_sweep_override(),
                )


def _check_option(group: str, value: Any, conf: Path) -> None:
    options = sorted(file.stem for file in (conf / group).glob("*.yaml"))
    if value not in options:
        raise ConfigError(
            f"{group}={value} is no option{nearest(str(value), options) or '.'} {group} can be: {', '.join(options)}."
        )


def _check_setting(key: str, value: Any, schema: type, groups: set[str], *, check_value: bool) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = setting_names(schema)
    is_entry = any(
        key.startswith(f"{name}.") and name.endswith((".columns", ".label_map", "columns", "label_map"))
        for name in known
    )
    if key not in known and not is_entry:
        group = nearest(key, groups) if "." not in key else ""
        raise ConfigError(f"There is no group {key}{group}" if group else unknown_key(key, schema))
    if check_value and not (isinstance(value, str) and "${" in value):
        try:
            OmegaConf.update(OmegaConf.structured(schema), key, value, force_add=is_entry)
        except OmegaConfBaseException as error:
            raise ConfigError(explain(error)) from None


def _complain(error: Exception) -> int:
    print(f"Error: {error}", file=sys.stderr, flush=True)
    return 1


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _shortest(folder: str) -> str:
    relative = os.path.relpath(folder)
    return folder if relative.startswith("..") else relative


def _remove_if_empty(folder: Path) -> None:
    """Take away the folder that Hydra made, and its empty parents, when nothing was written into it."""
    for candidate in [folder, *folder.parents][:3]:
        try:
            candidate.rmdir()
        except OSError:
            return


def _launch_time() -> str:
    """Return <date>/<time> of the launch: the same for all processes that one launcher started."""
    started = time.time()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if "ANGLE_LAUNCH_TIME" in os.environ:  # several nodes have several launchers
            return os.environ["ANGLE_LAUNCH_TIME"]
        import psutil

        started = psutil.Process(os.getppid()).create_time()
    return time.strftime("%Y-%m-%d/%H-%M-%S", time.localtime(started))


def _slug(text: str) -> str:
    """Return an override list as the name of a folder: no slashes, and cut, with a checksum, where too long."""
    slug = re.sub(r"[^\w.=,-]+", "-", text)
    if len(slug) <= SLUG_LENGTH:
        return slug
    return f"{slug[: SLUG_LENGTH - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

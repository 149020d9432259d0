"""The environment of the launcher (torchrun, accelerate launch): nothing else in the package reads its variables."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

from angle.errors import ConfigError

#: The scripts of this project, which are in one folder.
SCRIPTS = ("train.py", "evaluate.py", "convert.py")


def check_launcher_environment() -> None:
    """Check the variables that a launcher sets, which may be left over, or set by hand.

    Raises:
        ConfigError: one is no number, or they contradict each other: processes would wait for others that never come.

    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK") + (("MASTER_PORT",) if world_size() > 1 else ())
    values = {name: os.environ[name] for name in names if name in os.environ}
    wrong = [f"{name}={value}" for name, value in values.items() if not value.isdecimal()]
    for name, default, size in (("RANK", "0", "WORLD_SIZE"), ("LOCAL_RANK", "0", "LOCAL_WORLD_SIZE")):
        count = _number(size, world_size())
        if not wrong and int(values.get(name, default)) >= count:
            wrong = [f"{name}={values.get(name, default)} with {size}={count}"]
    if wrong:
        raise ConfigError(
            f"The environment has {wrong[0]}, with which processes cannot find each other: unset it, or start with "
            f"accelerate launch, which sets it."
        )


def _number(name: str, default: int) -> int:
    """Return a variable's value; the default if it is not set or, until that is refused, no number."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def world_size() -> int:
    """Return the number of processes; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def is_main_process() -> bool:
    """Return whether this is rank 0, the one process that prints and writes."""
    return _number("RANK", 0) == 0


def is_local_main_process() -> bool:
    """Return whether this is local rank 0, the first process on its machine."""
    return _number("LOCAL_RANK", 0) == 0


def is_multi_node() -> bool:
    """Return whether the processes run on several machines."""
    return _number("LOCAL_WORLD_SIZE", world_size()) < world_size()


def launch_command(processes: int) -> str:
    """Return how a command line begins that starts a script in this many processes."""
    return "python" if processes == 1 else f"accelerate launch --multi_gpu --num_processes {processes}"


def script_command(script: str) -> str:
    """Return how to type the path of a script: beside the running one, or just its name if another program runs."""
    running = Path(sys.argv[0])
    return shlex.quote(str(running.with_name(script))) if running.name in SCRIPTS else script


def launcher_flags() -> dict[str, str]:
    """Return what accelerate's launcher was told about training, by flag, without what it would do anyway."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # which it always sets
        return {}
    variables = ("mixed_precision", "dynamo_backend", "use_deepspeed", "use_megatron_lm", "use_parallelism_config")
    flags = {name: os.environ.get(f"ACCELERATE_{name.upper()}", "no").lower() for name in variables}
    words = _words_of_launcher()
    flags["gradient_accumulation_steps"] = words.get("gradient_accumulation_steps", "no")
    nothing = {"no", "false", "none"}
    return {
        name: value
        for name, value in flags.items()
        if value not in nothing and (name, value) != ("gradient_accumulation_steps", "1")
    }


def _words_of_launcher() -> dict[str, str]:
    """Return the flags of the command line that started this process's launcher: not all reach the environment."""
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return {}
    if "launch" not in words:
        return {}
    flags = [word.removeprefix("--").partition("=") for word in words]
    return {
        name.replace("-", "_"): value if equals else next_word
        for word, (name, equals, value), next_word in zip(words, flags, [*words[1:], ""], strict=True)
        if word.startswith("--")
    }


def launch_start_time() -> float:
    """Return when this launch began, in seconds since the epoch: for several processes, when their launcher started."""
    if world_size() > 1:
        import psutil

        return float(psutil.Process(os.getppid()).create_time())
    return time.time()


def launch_time() -> str:
    """Return the <date>/<time> of the launch, to the millisecond: the same in all processes of one launcher."""
    start = launch_start_time()
    return time.strftime("%Y-%m-%d/%H-%M-%S", time.localtime(start)) + f"-{int(start % 1 * 1000):03d}"


def report_failure(message: str) -> None:
    """Tell torchrun why this process fails: it ends its own report with the message that it finds in a file."""
    if (report := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
        with suppress(OSError):  # what is reported is worse
            Path(report).write_text(json.dumps({"message": message, "timestamp": int(time.time())}))

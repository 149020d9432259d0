"""Every command and every block of code in README.md and docs/ is checked, and runs on small models and data."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import fork_server
import pytest
from accelerate.commands.launch import launch_command_parser
from composition import CONF, SCHEMAS, composed
from conftest import launch_ranks, start_here
from documented import (
    NOT_RUN,
    PAGES,
    SCRIPTS,
    Command,
    blocks_of,
    clone_for,
    commands_of,
    few_steps,
    inline_commands_of,
    page_folder,
    presets_of,
    world,
)
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

import angle
import angle.report
import angle.soup
from angle.cli.arguments import check_arguments
from angle.cli.space import values_of
from angle.compat.angle_emb_0_6 import version_of
from angle.compat.command_line import option_names, parse
from angle.compat.translation import translate
from angle.config import TrainConfig
from angle.config.build import build_config
from angle.config.keys import unflatten

COMMANDS = {page: list(commands_of(page)) for page in PAGES}
#: By page, what is checked: each command once, wherever else it stands.
CHECKED = {
    (command.program, command.words): (page, command)
    for page in reversed(PAGES)
    for command in (*COMMANDS[page], *inline_commands_of(page))
    if command.program
}
#: What parses the words of commands that have options in place of settings.
PARSERS = {"angle.report": angle.report.arguments_parser, "angle.soup": angle.soup.arguments_parser}
PYTHON = {page: blocks for page in PAGES if (blocks := blocks_of(page, "python"))}


def name_of(page: Path) -> str:
    """Return a page as a test's name."""
    return page.stem


def test_commands_are_found() -> None:
    readme = [command.line for command in COMMANDS[PAGES[0]]]
    assert readme[:2] == ["pip install -c constraints.txt -e .", "python train.py"]
    assert readme[2:4] == ["pip install -c constraints.txt -e '.[test]'", "pytest"]
    assert sum(len(commands) for commands in COMMANDS.values()) > 60


def test_the_page_on_python_has_every_public_name() -> None:
    page = Path(CONF.parent, "docs", "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto\w+:: angle\.(\w+)", page, re.MULTILINE))
    assert [name for name in angle.__all__ if name not in named] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_runs_in_a_test_or_is_listed_with_the_reason(page: Path) -> None:
    for command in COMMANDS[page]:
        assert command.program or command.reason_not_to_run, (
            f"{command.page}: no test runs `{command.line}`. If it is this project's, let commands_of() in "
            f"tests/documented.py know the program; else add how it begins, and why it cannot run, to ELSEWHERE there."
        )


def test_what_is_listed_is_still_documented() -> None:
    lines = [command.line for commands in COMMANDS.values() for command in commands]
    blocks = [block for blocks in PYTHON.values() for block in blocks]
    assert [part for part in NOT_RUN if not any(part in text for text in (*lines, *blocks))] == []


@pytest.mark.parametrize(("page", "command"), [pytest.param(*one, id=one[1].line) for one in CHECKED.values()])
def test_commands_compose(page: Path, command: Command, tmp_path: Path) -> None:
    if command.launcher[:2] == ("accelerate", "launch"):
        launch_command_parser().parse_args([*command.launcher[2:], command.program, *command.words])
    if command.program in PARSERS:
        assert PARSERS[command.program]().parse_args(command.words).folders
        return
    if command.program not in (*SCRIPTS, "angle.mine", "angle.embed"):
        command_line = parse(command.words, version_of(option_names(command.words)))
        build_config(unflatten(translate(command_line).settings), TrainConfig)
        return
    conf = clone_for(page, tmp_path) / "conf" if presets_of(page) else CONF
    name = command.program.removeprefix("angle.").removesuffix(".py")
    words = get_args_parser().parse_args(check_arguments(list(command.words), SCHEMAS[name], conf)).overrides
    single = [
        f"{override.get_key_element()}={values_of(override, 1)[0]}"
        if override.is_sweep_override()
        else override.input_line
        for override in OverridesParser.create().parse_overrides([word for word in words if "=" in word])
    ]
    composed(*single, name=name, conf=conf)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(c.program for c in COMMANDS[page])], ids=name_of)
@pytest.mark.usefixtures("unverified")
def test_commands_run(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("angle.data.sample.DEFAULT_ROWS", {"train": 64, "validation": 40, "test": 40})
    commands = [command for command in COMMANDS[page] if command.program and command.reason_not_to_run is None]
    folder = page_folder(clone_for(page, tmp_path), world(tmp_path_factory), commands)
    for command in commands:
        words = few_steps(command)
        done = run(command, words, folder)
        assert done.returncode == 0, (
            f"{command.page}: `{command.line}` failed, as {shlex.join(words)}. What it needs is made by an earlier "
            f"command of the page, or by world() in tests/documented.py; what cannot run here is listed in NOT_RUN "
            f"there.\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        )


def run(command: Command, words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process; one with a launcher in two, which are started as the launcher would start them."""
    start = [str(folder / command.program)] if command.program in SCRIPTS else ["-m", command.program]
    if command.launcher:
        if command.program == "train.py" and not any("output_dir=" in word for word in words):
            # By default it is named by when the launcher began, which these ranks do not have in common.
            words = [*words, f"train.output_dir=launched-{len(list(folder.glob('launched-*')))}"]
        ranks = launch_ranks([*start, *words], folder, **command.env)
        # One that ends takes the others with it, which only say that they have lost it.
        return max(ranks, key=lambda rank: (rank.returncode != 0, "Connection closed by peer" not in rank.stderr))
    return start_here(*start, *words, folder=folder, **command.env)


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_python_runs(page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A page's blocks share their names, as in a notebook."""
    folder = page_folder(clone_for(page, tmp_path), world(tmp_path_factory), [])
    source = []
    for block in PYTHON[page]:
        compile(block, page.name, "exec")
        if not any(part in block for part in NOT_RUN):
            source.append(block)
    script = folder / "documented_python.py"
    script.write_text("\n".join(source), encoding="utf-8")
    done = fork_server.run([str(script)], folder, fork_server.environment(), timeout=300)
    assert done.returncode == 0, (
        f"The Python blocks of {page.name} failed. What they need is made by world() in tests/documented.py; a block "
        f"that cannot run here is listed in NOT_RUN there, by a part of it.\n{done.stderr[-3000:]}"
    )

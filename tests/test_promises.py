"""What the README says can be typed, and what the environment files say is installed."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import REPO, sample_rows, write_jsonl
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from angle.cli.arguments import check_arguments
from angle.cli.space import values_of
from angle.config import ConvertConfig, EvaluateConfig, TrainConfig
from angle.config.build import build_config
from angle.report import arguments_parser

CONF = REPO / "conf"
README, *DOCS = (path.read_text(encoding="utf-8") for path in (REPO / "README.md", *(REPO / "docs").glob("*.md")))
PAGES = (README, *DOCS)
BLOCKS = [block.replace("\\\n", " ") for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]
LINES = [line for block in BLOCKS for line in block.splitlines() if re.search(r"\b\w+\.py\b", line)]
SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig, "convert": ConvertConfig}
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("line", LINES)
def test_commands_of_the_readme_compose(line):
    command = shlex.split(line.split("&&")[-1], comments=True)
    (script,) = (word for word in command if word.endswith(".py"))
    words = command[command.index(script) + 1 :]
    name = Path(script).stem
    words = check_arguments([word.replace("RUN", "run") for word in words], SCHEMAS[name], CONF)
    ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
    overrides = OverridesParser.create().parse_overrides([word for word in words if word != "-m"])
    single = [
        f"{override.get_key_element()}={values_of(override, 1)[0]}"
        if override.is_sweep_override()
        else override.input_line
        for override in overrides
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        build_config(compose(name, single), SCHEMAS[name])


def test_reports_of_the_documentation_can_be_asked_for():
    lines = [line for block in BLOCKS for line in block.splitlines() if "angle.report" in line]
    assert len(lines) > 4
    for line in lines:
        start, module, option, *words = shlex.split(line, comments=True)
        assert (start, module, option) == ("python", "-m", "angle.report")
        assert arguments_parser().parse_args(words).folders


def test_readme_commands_are_found():
    assert len(LINES) > 10
    assert BLOCKS[0].strip() == "pip install -c constraints.txt -e . && python train.py"
    assert BLOCKS[1].strip() == 'pip install -c constraints.txt -e ".[test]" && pytest'


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, split in {"pairs": "train", "dev": "validation", "test": "test"}.items():
        write_jsonl(tmp_path / f"{name}.jsonl", sample_rows("A", split, 64))
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        assert "google-bert/bert-base-uncased" in code
        names: dict[str, object] = {}
        exec(code.replace("google-bert/bert-base-uncased", "tiny").replace("max_length=128", "max_length=64"), names)
        assert names["embeddings"].shape == (2, 128)
    assert json.loads((names["result"].folder / "run.json").read_text())["finished"] is True
    assert json.loads((tmp_path / "my-run" / "run.json").read_text())["finished"] is True


def test_conda_installs_what_pip_installs():
    environment = yaml.safe_load((REPO / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[test]"]}
    (python,) = (name.split("=")[1] for name in packages if name.startswith("python="))
    assert python in SpecifierSet(PROJECT["requires-python"])


def test_every_requirement_has_a_tested_version_in_its_range():
    lines = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    requirements = [
        Requirement(text)
        for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
        for text in group
    ]
    assert len(requirements) > 15
    for requirement in requirements:
        assert tested[canonicalize_name(requirement.name)] in requirement.specifier, requirement

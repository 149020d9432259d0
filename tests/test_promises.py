"""What the environment files say is installed."""

from __future__ import annotations

import tomllib

import yaml
from conftest import REPO
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


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

"""Imports point one way, modules stay short, and few of them know how settings are composed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPO

MODULES = sorted((REPO / "angle").rglob("*.py"))
SCRIPTS = [REPO / name for name in ("train.py", "evaluate.py", "convert.py")]
#: Packages and modules from the bottom up; one imports from those below, and from its own package.
LAYERS = (
    ("structures", "errors"),
    ("prompts", "files", "figures", "timeouts", "quiet", "versions"),
    ("cache",),
    ("kernels", "distributed"),
    ("config", "terminal"),
    ("data", "objective", "tracking"),
    ("modeling",),
    ("evaluation",),
    ("export", "mining", "embedding"),
    ("training",),
    ("sweeps",),
    ("soups", "reports"),
    ("cli",),
    ("compat",),
    ("api", "angle_trainer", "mine", "embed", "report", "soup", "utils"),
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
#: Where a function is given all settings of a run: to compose, save, compare, take apart or describe them.
TAKE_ALL_SETTINGS = {
    "api/in_memory", "api/training", "cli/sweep", "config/build", "config/overrides", "config/record", "config/resume",
    "training/describe", "training/dry_run", "training/loop", "training/notes", "training/resolve",
    "training/run_folder", "training/setup", "training/sharding", "training/summary",
}  # fmt: skip
KNOW_HYDRA = (
    "config/build", "config/overrides", "cli/app", "cli/arguments", "cli/jobs", "cli/replaced_sources", "cli/search",
    "cli/space", "cli/sweep", "cli/sweeper",
)  # fmt: skip


def part(module: str) -> str:
    """Return which part of the package a dotted name is of: "data" of "angle.data.sample", "" of "angle"."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: write imports from the top: from angle..."
            known = [REPO.joinpath(*node.module.split("."), f"{alias.name}.py").is_file() for alias in node.names]
            folders = [REPO.joinpath(*node.module.split("."), alias.name).is_dir() for alias in node.names]
            for alias, file, folder in zip(node.names, known, folders, strict=True):
                yield f"{node.module}.{alias.name}" if file or folder else node.module


def upward_imports(path: Path) -> list[str]:
    """Return the imports of a module of the package that point the wrong way."""
    inside = path.relative_to(REPO / "angle")
    own = inside.parts[0].removesuffix(".py")
    found = []
    for name in imports(path):
        if name.split(".")[0] != "angle":
            continue
        other = part(name)
        if other != own and not LAYER[other] < LAYER[own]:
            found.append(name)
    return found


def name_of(path: Path) -> str:
    """Return a path as a test's name."""
    return str(path.relative_to(REPO))


def test_every_part_has_a_layer():
    parts = {path.relative_to(REPO / "angle").parts[0].removesuffix(".py") for path in MODULES}
    assert parts - {"__init__"} == LAYER.keys()
    assert len(MODULES) > 25


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent.name != "angle" or path.stem in LAYER], ids=name_of
)
def test_no_upward_imports(path):
    assert upward_imports(path) == []


def test_upward_import_is_detected(tmp_path, monkeypatch):
    file = tmp_path / "angle" / "objective" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text("from angle.structures import Tokens\ndef f():\n    from angle.modeling import pooling\n")
    monkeypatch.setattr("test_imports.REPO", tmp_path)
    assert upward_imports(file) == ["angle.modeling"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_few_modules_import_hydra(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & {"hydra", "omegaconf"} or name_of(path) in [f"angle/{name}.py" for name in KNOW_HYDRA]


def test_few_modules_are_given_all_settings():
    taking = {
        str(path.relative_to(REPO / "angle").with_suffix(""))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None and "TrainConfig" in ast.unparse(argument.annotation)
    }
    assert taking == TAKE_ALL_SETTINGS


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_needed(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_the_top = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert not at_the_top & {"transformers", "datasets", "peft", "bitsandbytes", "wandb", "accelerate", "hydra"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
    assert {part(name) for name in imports(path) if name.startswith("angle")} - LAYER.keys() == set()


@pytest.mark.parametrize("path", sorted((REPO / "angle" / "kernels").rglob("*.py")), ids=name_of)
def test_kernels_import_structures_only(path):
    own = [name for name in imports(path) if name.split(".")[0] == "angle"]
    assert all(name.startswith("angle.kernels") or name == "angle.structures" for name in own)


def private_operators(path: Path) -> list[str]:
    """Return the private operators and modules of torch that a file uses: torch.ops.x, torch._x, torch._C."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            found.append(f"torch.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    parts = [name.split(".") for name in found]
    return [
        ".".join(names)
        for names in parts
        if names[0] == "torch"
        and len(names) > 1
        and (names[1] == "ops" or (names[1].startswith("_") and not names[1].startswith("__")))
    ]


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_private_operators_of_torch_are_called_by_kernels_alone(path):
    assert private_operators(path) == [] or (REPO / "angle" / "kernels") in path.parents


def test_private_operators_are_detected(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "import torch\nfrom torch import _C\ntorch.ops.aten.mm(1)\ntorch._softmax_backward_data()\ntorch.mm()\n"
    )
    assert sorted(private_operators(file)) == ["torch._C", "torch._softmax_backward_data", "torch.ops"]
    assert private_operators(REPO / "angle" / "kernels" / "linear.py") == ["torch.ops"] * 2

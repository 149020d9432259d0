"""Words that Hydra, Python or a launcher would take for something else: they work, or are refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPO, sample_rows, snapshot, start, write_jsonl

from angle.cli.arguments import check_arguments
from angle.config import EvaluateConfig, ModelConfig, SourceConfig, TrainConfig, TrainingConfig
from angle.config.build import OTHER_NAMES
from angle.config.keys import setting_types
from angle.distributed import environment
from angle.errors import ConfigError
from angle.training.launcher import check_launcher

BRACES = "needs {text}, and braces may hold only {text} and names of columns; write a literal brace twice: {{ or }}."
#: Each would change texts, or write a width of spaces before them.
TEMPLATES = [
    "{text:>1000000000}", "{text:1000000000}", "{text!r}", "{text!s}", "{text!a}", "{text:.3}", "{text:{width}}",
    "{text:%}", "{text.upper}", "{text[0]}", "{} {text}", "{0} {text}", "{text} {title!r}", "{text} {title:>9}",
]  # fmt: skip


@pytest.mark.parametrize("prompt", TEMPLATES)
def test_templates_take_names_only(prompt):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(prompt=prompt)
    assert str(caught.value) == f"model.prompt={prompt!r} {BRACES}"


SHARDED = "to shard weights, start with --config_file conf/accelerate/fsdp2_lora.yaml."
OR_LEAVE_OUT = "or leave out the flag (a line in the file that accelerate config wrote is one too)."
#: What accelerate's launcher was told, by the name of the flag, and the message.
LAUNCHER_FLAGS = {
    "mixed_precision bf16": f"contradicts train.mixed_precision=no: type train.mixed_precision=bf16, {OR_LEAVE_OUT}",
    "mixed_precision fp16": f"contradicts train.mixed_precision=no: type train.mixed_precision=fp16, {OR_LEAVE_OUT}",
    "mixed_precision fp8": f"contradicts train.mixed_precision=no: type train.mixed_precision=bf16, {OR_LEAVE_OUT}",
    "gradient_accumulation_steps 8": (
        f"contradicts train.gradient_accumulation_steps=1: type train.gradient_accumulation_steps=8, {OR_LEAVE_OUT}"
    ),
    "dynamo_backend inductor": "is not supported: leave the flag out, and type train.compile=true.",
    "dynamo_backend eager": "is not supported: leave the flag out, and type train.compile=true.",
    "use_deepspeed": f"is not supported: leave the flag out, and {SHARDED}",
    "use_megatron_lm": f"is not supported: leave the flag out, and {SHARDED}",
    "use_parallelism_config": (
        "is not supported: leave the flag out, and start with --config_file conf/accelerate/several_gpus.yaml."
    ),
}


def told(monkeypatch, flag: str, value: str = "true") -> None:
    """Start as accelerate's launcher would with a flag."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    if flag == "gradient_accumulation_steps":
        monkeypatch.setattr(environment, "_words_of_launcher", lambda: {flag: value})
    else:
        monkeypatch.setenv(f"ACCELERATE_{flag.upper()}", value)


@pytest.mark.parametrize("words", LAUNCHER_FLAGS)
def test_what_the_launcher_was_told_is_not_ignored(monkeypatch, words):
    told(monkeypatch, *words.split())
    with pytest.raises(ConfigError) as caught:
        check_launcher(TrainingConfig())
    assert str(caught.value) == f"accelerate launch --{words} {LAUNCHER_FLAGS[words]}"


@pytest.mark.parametrize("words", ["mixed_precision bf16", "mixed_precision no", "gradient_accumulation_steps 8"])
def test_what_the_settings_say_too_may_be_told(monkeypatch, words):
    told(monkeypatch, *words.split())
    check_launcher(TrainingConfig(mixed_precision="bf16", gradient_accumulation_steps=8))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    check_launcher(TrainingConfig())


def test_flags_are_read_from_the_command_line_of_the_launcher(monkeypatch):
    command = ["python", "accelerate", "launch", "--gradient-accumulation-steps=8", "--num_processes", "2", "train.py"]
    monkeypatch.setattr("psutil.Process.cmdline", lambda _: command)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert environment.launcher_flags() == {"gradient_accumulation_steps": "8"}
    command[3] = "--gradient_accumulation_steps=1"
    assert environment.launcher_flags() == {}


@pytest.mark.slow
def test_the_command_refuses_what_its_launcher_was_told(tmp_path):
    done = start("train.py", folder=tmp_path, ACCELERATE_MIXED_PRECISION="bf16")
    message = LAUNCHER_FLAGS["mixed_precision bf16"]
    assert done.stderr == f"Error: accelerate launch --mixed_precision bf16 {message}\n"
    assert (done.stdout, done.returncode, snapshot(tmp_path)) == ("", 1, {})


ODD = [
    "it's",
    "a b",
    "a#b",
    "a=b",
    "a[1]",
    "[a]",
    "a(1)",
    "a{1}",
    'a"b',
    "é",
    "a;b",
    "a&b",
    "<a>",
    "a!b",
    "a\\b",
    "a,(b",
]
PATHS = ["data.train.name_or_path", "model.name_or_path", "train.output_dir", "train.resume", "hydra.sweep.dir"]


def value_of(word: str) -> object:
    """Return the value that Hydra reads in a word once it is checked."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (checked,) = check_arguments([word], TrainConfig, REPO / "conf")
    return OverridesParser.create().parse_override(checked).value()


@pytest.mark.parametrize("setting", PATHS)
@pytest.mark.parametrize("name", ODD)
def test_paths_may_hold_any_character(setting, name):
    is_list = name == "[a]" and setting.startswith("data.")  # unless there is such a folder
    assert value_of(f"{setting}={name}") == (["a"] if is_list else name)


def test_what_exists_is_meant_even_if_it_reads_as_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    (tmp_path / "[a,b]").mkdir()
    assert value_of("train.output_dir=a,b") == "a,b"
    assert value_of("data.train.name_or_path=[a,b]") == "[a,b]"
    assert value_of("data.train.name_or_path=[a,c]") == ["a", "c"]


@pytest.mark.parametrize(
    "word", ["train.output_dir=2024_11_29", "model.revision=1e5", "data.train.subset=1_000", "model.revision=true"]
)
def test_a_text_that_reads_as_a_number_stays_as_typed(word):
    assert value_of(word) == word.partition("=")[2]


@pytest.mark.parametrize("setting", [*PATHS, "hydra.run.dir"])
def test_a_tilde_is_the_home_folder(setting, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert value_of(f"{setting}=~/x y") == "/home/ada/x y"
    with pytest.raises(ConfigError) as caught:
        value_of(f"{setting}=~nobody-here/x")
    assert str(caught.value) == (
        f"{setting}=~nobody-here/x names the home folder of no user: write the path out, or ./~nobody-here/x for one "
        f"of that name."
    )


def test_a_tilde_is_the_home_folder_in_python_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert SourceConfig(["~/a.jsonl", "b.jsonl"]).names() == ["/home/ada/a.jsonl", "b.jsonl"]
    assert ModelConfig("~/m", adapter="~/a").adapter == "/home/ada/a"
    assert TrainingConfig(output_dir="~", resume="~/r").output_dir == "/home/ada"
    assert EvaluateConfig(tasks=["~/t.jsonl"]).tasks == ["/home/ada/t.jsonl"]


EXPERIMENT = "is not supported: put the settings into conf/experiment/NAME.yaml and type experiment=NAME."
HYDRA = {
    "--config-dir=mine": f"--config-dir=mine {EXPERIMENT}",
    "--config-name=mine": f"--config-name=mine {EXPERIMENT}",
    "--config-path=mine": f"--config-path=mine {EXPERIMENT}",
    "hydra.sweeper.params={loss.ibn_w: 1}": (
        "hydra.sweeper.params is not supported: type -m and the values of each setting, such as "
        "loss.ibn_w=10,20, and for a search hparams=optuna."
    ),
    "+hydra.sweeper.params.a=1": (
        "hydra.sweeper.params.a is not supported: type -m and the values of each setting, such as "
        "loss.ibn_w=10,20, and for a search hparams=optuna."
    ),
    "lora=glob(x*)": "lora=glob(x*) selects nothing: lora can be: none, r16, r32, r64, r8.",
    "train.epochs=glob(x*)": "train.epochs=glob(x*) selects nothing: train.epochs is not a group of presets.",
}


@pytest.mark.parametrize("word", HYDRA)
def test_what_hydra_offers_and_is_not_here_is_refused(word):
    with pytest.raises(ConfigError) as caught:
        check_arguments(["-m", word], TrainConfig, REPO / "conf")
    assert str(caught.value) == HYDRA[word]


def test_a_glob_selects_presets():
    assert check_arguments(["-m", "lora=glob(r?)"], TrainConfig, REPO / "conf") == ["-m", "lora=r8"]
    assert check_arguments(["-m", "lora=glob(r*,exclude=[r8,r64])"], TrainConfig, REPO / "conf")[1] == "lora=r16,r32"


@pytest.mark.slow
def test_commands_work_in_folders_of_any_name(tmp_path):
    """Train, resume, evaluate and convert, with what shells, Hydra and YAML would each take for something else."""
    home = tmp_path / "it's [my] #1 = home"
    home.mkdir()
    for split in ("train", "validation"):
        write_jsonl(home / f"{split} (1).jsonl", sample_rows("A", split, 24))
    data = [f"data.train.name_or_path={home}/train (1).jsonl", "data.valid_sts.name_or_path=~/validation (1).jsonl"]
    run = home / "a run, 100% {new}"
    done = start(
        "train.py", "data=files", *data, f"train.output_dir={run}", "train.max_steps=2", folder=tmp_path, HOME=str(home)
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "run.json").read_text())["finished"]
    for script, words in {
        "train.py": [f"train.resume={run}"],
        "evaluate.py": [f"model.name_or_path={run}", "tasks=['~/validation (1).jsonl']", "output_dir=~/scores #1"],
        "convert.py": ["model.name_or_path=~/a run, 100% {new}", "output_dir=~/for [st]"],
    }.items():
        done = start(script, *words, folder=tmp_path, HOME=str(home))
        assert done.returncode == 0, done.stderr
    assert (home / "scores #1" / "results.json").is_file()
    assert (home / "for [st]" / "modules.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [home.name]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr=1e-4", "train.learning_rate"), ("seed=1", "train.seed"), ("bs=8", "train.batch_size"),
        ("epochs=2", "train.epochs"), ("resume=run", "train.resume"), ("name=run", "train.output_dir"),
        ("output=run", "train.output_dir"), ("model_name=bert", "model.name_or_path"),
        ("dataset=pairs.jsonl", "data.train.name_or_path"), ("fp16=true", "train.mixed_precision"),
    ],
)  # fmt: skip
def test_names_of_other_programs_are_understood(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^There is no setting {typed.partition('=')[0]}; did you mean {meant}\?"):
        check_arguments([typed], TrainConfig, REPO / "conf")


def test_every_name_of_another_program_leads_to_a_setting() -> None:
    known = setting_types(TrainConfig) | setting_types(EvaluateConfig)
    assert all(set(settings) <= known.keys() for settings in OTHER_NAMES.values())
    assert OTHER_NAMES.keys().isdisjoint(known)


@pytest.mark.slow
def test_a_shell_completes_settings(tmp_path: Path) -> None:
    done = start("train.py", "-sc", "install=bash", folder=tmp_path)
    assert "hydra_bash_completion()" in done.stdout
    line = "python train.py loss.an"
    done = start("train.py", "-sc", "query=bash", folder=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.stdout.split() == ["loss.angle_tau=", "loss.angle_w="]

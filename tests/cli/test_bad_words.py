"""Words that Hydra, Python or a launcher would take for something else: they work, or are refused in a sentence."""

from __future__ import annotations

import pytest
from conftest import snapshot, start

from angle.config import ModelConfig, TrainingConfig
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

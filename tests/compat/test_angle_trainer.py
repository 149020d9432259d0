"""The reference's command: every option sets a setting, the printed command does the same, and its own examples run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from composition import CONF, composed
from conftest import REPO, decoder_tokenizer, free_port, write_jsonl
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from angle import ConfigError, TrainConfig, build_config, fit
from angle.cli.arguments import check_arguments
from angle.compat.angle_trainer import main
from angle.compat.command_line import parse
from angle.compat.generation_0_5 import GENERATION_0_5
from angle.compat.translation import Translation, translate
from angle.config.build import load_config, save_config
from angle.config.keys import flatten, unflatten
from angle.config.overrides import hydra_overrides
from angle.data import sample
from angle.training.result import Result

OPTIONS = GENERATION_0_5.by_name
REFERENCE = json.loads((REPO / "tests" / "fixtures" / "reference_options.json").read_text())
BASE = "--model_name_or_path m --train_name_or_path t.jsonl --save_dir out --seed 42"
VALID, CALLBACK = "--valid_name_or_path v.jsonl", "--valid_name_or_path_for_callback s.jsonl"
DUPLICATES = "--filter_duplicate keeps equal texts from being negatives; angle_emb drops their rows"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process with a GPU, and none of the environment variables that matter."""
    monkeypatch.setattr("angle.training.precision.half_precision", lambda: "fp16")
    for name in ("BiLLM_START_INDEX", "WANDB_PROJECT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def translation_of(words: str) -> Translation:
    """Return the translation of a command line of the reference."""
    return translate(parse(shlex.split(words), GENERATION_0_5))


def config_of(words: str) -> TrainConfig:
    """Return the configuration equivalent to a command line of the reference."""
    return build_config(unflatten(translation_of(words).settings), TrainConfig)


@cache
def cached_config_of(words: str) -> TrainConfig:
    """Return the same, built once, for a command line that does not depend on the environment."""
    return config_of(words)


def notes_of(words: str) -> list[str]:
    """Return the notes on a command line beyond those on BASE."""
    return [note for note in translation_of(f"{BASE} {words}").notes if note != DUPLICATES]


def error_of(words: str) -> str:
    """Return the error message for a command line that cannot work."""
    with pytest.raises(ConfigError) as caught:
        config_of(words)
    return str(caught.value)


def changes(config: TrainConfig, since: TrainConfig) -> dict[str, Any]:
    """Return the settings that differ."""
    before = flatten(since)
    return {name: value for name, value in flatten(config).items() if value != before[name]}


def test_the_options_are_those_of_the_reference():
    assert len(REFERENCE) == len(OPTIONS) == 66
    for name, expected in REFERENCE.items():
        option = OPTIONS[name]
        assert option.type.__name__ == expected["type"], name
        assert option.default == expected["default"], name
        assert list(option.choices) == expected.get("choices", []), name
        assert option.required == expected.get("required", False), name


def test_the_defaults_are_those_of_the_reference():
    assert changes(config_of(BASE), TrainConfig()) == {
        "model.name_or_path": "m",
        "model.max_length": 512,
        "pooling.strategy": "cls",
        "loss.cosine_w": 0.0,
        "loss.ibn_w": 30.0,
        "loss.angle_w": 1.0,
        "data.train.name_or_path": "t.jsonl",
        "train.epochs": 10,
        "train.learning_rate": 1e-5,
        "train.warmup_steps": 100,
        "train.logging_steps": 100,
        "train.save_steps": 100,
        "train.save_total_limit": 1,
        "train.output_dir": "out",
    }
    settings = flatten(config_of(BASE))
    same_as_schema = {
            "train.batch_size": 32, "train.weight_decay": 0.0, "train.max_grad_norm": 1.0, "train.scheduler": "linear",
            "data.duplicates": "mask", "train.mixed_precision": "no", "model.dtype": "float32", "model.is_llm": None,
            "loss.cosine_tau": 20.0, "loss.ibn_tau": 20.0, "loss.angle_tau": 20.0, "data.train.split": None,
            "tracking.mode": "disabled", "hub.push": False}  # fmt: skip
    assert {key: settings[key] for key in same_as_schema} == same_as_schema


LORA = {"lora.enabled": True, "lora.alpha": 32}  # rank and dropout are the schema's own
ESE, TEACHER = {"ese.enabled": True}, {"teacher.enabled": True, "teacher.name_or_path": "x", "teacher.pooling": "cls"}
VALID_SET, STS_SET = {"data.valid.name_or_path": "v.jsonl"}, {"data.valid_sts.name_or_path": "s.jsonl"}
SETTINGS_OF: list[tuple[str, dict[str, Any]]] = [
    ("--model_name_or_path x", {"model.name_or_path": "x"}),
    ("--tokenizer_name_or_path x", {"model.tokenizer_name_or_path": "x"}),
    ("--load_mlm_model 0", {}),
    ("--pretrained_model_path x", {"model.name_or_path": "x", "model.tokenizer_name_or_path": "m"}),
    ("--pretrained_model_path x --tokenizer_name_or_path y",
     {"model.name_or_path": "x", "model.tokenizer_name_or_path": "y"}),
    ("--pretrained_lora_path x", {"model.adapter": "x"}),
    ("--pretrained_lora_path x --apply_lora 1 --lora_r 8", {"model.adapter": "x"}),
    ("--pooling_strategy cls_avg", {"pooling.strategy": "cls_avg"}),
    ("--pooling_strategy 3", {"pooling.strategy": "3"}),
    ("--maxlen 60", {"model.max_length": 60}),
    ("--prompt_template 'Say {text}:'", {"model.prompt": "Say {text}:"}),
    ("--is_llm 1 --fp16 0", {"model.is_llm": True}),
    ("--is_llm 0", {}),
    ("--torch_dtype bfloat16 --is_llm 1 --fp16 0", {"model.dtype": "bfloat16", "model.is_llm": True}),
    ("--torch_dtype auto --is_llm 1 --fp16 0", {"model.dtype": "auto", "model.is_llm": True}),
    ("--torch_dtype bfloat16", {}),
    ("--apply_billm 1", {"billm.enabled": True}),
    ("--billm_model_class LlamaForCausalLM --apply_billm 1",
     {"billm.enabled": True, "billm.model_class": "LlamaForCausalLM"}),
    ("--billm_model_class LlamaForCausalLM", {}),
    ("--tokenizer_padding max_length", {}),
    ("--tokenizer_padding_side left", {"model.padding_side": "left"}),
    ("--train_name_or_path x", {"data.train.name_or_path": "x"}),
    ("--train_subset_name x", {"data.train.subset": "x"}),
    ("--train_split_name x", {"data.train.split": "x"}),
    (VALID, VALID_SET | {"train.eval_steps": 1000}),
    (f"--valid_subset_name x {VALID}", VALID_SET | {"train.eval_steps": 1000, "data.valid.subset": "x"}),
    (f"--valid_split_name x {VALID}", VALID_SET | {"train.eval_steps": 1000, "data.valid.split": "x"}),
    ("--valid_split_name x", {}),
    (CALLBACK, STS_SET),
    (f"--valid_subset_name_for_callback x {CALLBACK}", STS_SET | {"data.valid_sts.subset": "x"}),
    (f"--valid_split_name_for_callback train {CALLBACK}", STS_SET | {"data.valid_sts.split": "train"}),
    ("--filter_duplicate 1", {}),
    ("--filter_duplicate 0", {"data.duplicates": "keep"}),
    ("--fix_data 0", {}),
    ("--dataset_seed 7", {"data.seed": 7}),
    ("--streaming --max_steps 5", {"data.streaming": True, "train.max_steps": 5}),
    ("--workers 8", {}),
    ("--coword_random_mask_rate 0", {}),
    ("--cosine_w 2", {"loss.cosine_w": 2.0}),
    ("--ibn_w 2.5", {"loss.ibn_w": 2.5}),
    ("--angle_w 0", {"loss.angle_w": 0.0}),
    ("--cosine_tau 2", {"loss.cosine_tau": 2.0}),
    ("--ibn_tau 2", {"loss.ibn_tau": 2.0}),
    ("--angle_tau 1", {"loss.angle_tau": 1.0}),
    ("--apply_ese 1", ESE),
    ("--ese_kl_temperature 2 --apply_ese 1", ESE | {"ese.kl_temperature": 2.0}),
    ("--ese_compression_size 64 --apply_ese 1", ESE | {"ese.compression_size": 64}),
    ("--ese_compression_size 64", {}),
    ("--teacher_name_or_path x", TEACHER),
    ("--teacher_name_or_path m", TEACHER | {"teacher.name_or_path": "self"}),
    ("--teacher_pooling_strategy avg --teacher_name_or_path x", TEACHER | {"teacher.pooling": "avg"}),
    ("--teacher_pooling_strategy all --teacher_name_or_path x", TEACHER | {"teacher.pooling": "tokens"}),
    ("--teacher_pooling_strategy avg", {}),
    ("--apply_lora 1", LORA),
    ("--apply_lora 0", {}),
    ("--lora_r 64 --apply_lora 1", LORA | {"lora.r": 64}),
    ("--lora_alpha 128 --apply_lora 1", LORA | {"lora.alpha": 128}),
    ("--lora_alpha 64 --apply_lora 1", {"lora.enabled": True}),
    ("--lora_dropout 0.2 --apply_lora 1", LORA | {"lora.dropout": 0.2}),
    ("--lora_target_modules q_proj,v_proj --apply_lora 1", LORA | {"lora.target_modules": ["q_proj", "v_proj"]}),
    ("--lora_target_modules 'q_proj, v_proj,' --apply_lora 1", LORA | {"lora.target_modules": ["q_proj", "v_proj"]}),
    ("--lora_r 64", {}),
    ("--load_kbit 4 --apply_lora 1", LORA | {"model.load_kbit": 4}),
    ("--load_kbit 16", {}),
    ("--epochs 3", {"train.epochs": 3}),
    ("--max_steps 9", {"train.max_steps": 9}),
    ("--max_steps -1", {}),
    ("--batch_size 8", {"train.batch_size": 8}),
    ("--gradient_accumulation_steps 16", {"train.gradient_accumulation_steps": 16}),
    ("--learning_rate 2e-4", {"train.learning_rate": 2e-4}),
    ("--warmup_steps 0", {"train.warmup_steps": 0}),
    ("--fp16 1", {"train.mixed_precision": "fp16"}),
    ("--fp16 True", {"train.mixed_precision": "fp16"}),
    ("--fp16 0", {}),
    ("--fp16 False", {}),
    ("--is_llm 1", {"model.is_llm": True, "train.mixed_precision": "fp16"}),
    ("--seed 0", {"train.seed": 0}),
    ("--save_dir x", {"train.output_dir": "x"}),
    ("--logging_steps 7", {"train.logging_steps": 7}),
    ("--save_strategy epoch", {"train.save_steps": None}),
    ("--save_strategy no", {"train.save_steps": 0}),
    ("--save_steps 7", {"train.save_steps": 7}),
    ("--save_steps 7 --save_strategy no", {"train.save_steps": 0}),
    ("--save_total_limit 3", {"train.save_total_limit": 3}),
    (f"--eval_strategy epoch {VALID}", VALID_SET),
    (f"--eval_strategy no {VALID}", VALID_SET | {"train.eval_steps": 0}),
    (f"--eval_steps 7 {VALID}", VALID_SET | {"train.eval_steps": 7}),
    ("--eval_steps 7", {}),
    (f"--eval_strategy no {CALLBACK}", STS_SET),
    ("--push_to_hub 1 --hub_model_id u/n", {"hub.push": True, "hub.model_id": "u/n"}),
    ("--push_to_hub 0", {}),
    ("--hub_model_id u/n", {}),
    ("--hub_private_repo 0 --push_to_hub 1 --hub_model_id u/n",
     {"hub.push": True, "hub.model_id": "u/n", "hub.private": False}),
    ("--wandb_project x", {"tracking.mode": "online", "tracking.project": "x"}),
    ("--wandb_log_model false", {}),
]  # fmt: skip


def test_every_option_has_a_row():
    assert {words.split()[0].removeprefix("--") for words, _ in SETTINGS_OF} == OPTIONS.keys()


@pytest.mark.parametrize(("words", "expected"), [pytest.param(*row, id=row[0]) for row in SETTINGS_OF])
def test_an_option_sets_its_setting(words, expected):
    assert changes(cached_config_of(f"{BASE} {words}"), cached_config_of(BASE)) == expected


PROMPTS = [
    *(
        'Say "{text}" in one word:"',
        "it's {text}",
        "a, b; {text}: #1 = [x] (y)",
        "{text}\\",
        '\\"{text}\\"',
        " {text} ",
    ),
    *("{text}\nnext\tline\n", "Ünï {text} 中", "{text} {other}", "$HOME {text} % * ? | & < > ~ ` !"),
]
PATHS = [
    *(
        "a b/c.jsonl",
        "a,b.jsonl",
        "x=y.jsonl",
        "{x}.jsonl",
        "[x].jsonl",
        "it's.jsonl",
        "null",
        "true",
        "1e3",
        "-1",
        "7",
    ),
    *("~/x", "C:\\x\\", "../x", "/x/y-z_1.json", "é.jsonl", "choice(1,2)", "nan", "", "a: b", "@x", "+x"),
]
LINES = [
    *[f"{BASE} {words}" for words, _ in SETTINGS_OF],
    *[f"{BASE} --prompt_template {shlex.quote(prompt)}" for prompt in PROMPTS],
    *[
        f"--model_name_or_path={path} --train_name_or_path {path} --seed 1 --apply_lora 1 --lora_target_modules={path}"
        for path in map(shlex.quote, PATHS)
    ],
]


@pytest.mark.parametrize("reference", LINES)
def test_the_printed_line_says_the_same_settings(reference):
    config = cached_config_of(reference)
    words = OverridesParser.create().parse_overrides(shlex.split(shlex.join(hydra_overrides(config))))
    assert not any(word.is_sweep_override() for word in words)
    assert {word.key_or_group: word.value() for word in words} == changes(config, TrainConfig())


ALL = (
    "--apply_lora 1 --lora_target_modules q_proj,v_proj --load_kbit 4 --is_llm 1 --apply_billm 1 --apply_ese 1 "
    "--teacher_name_or_path 'a b' --dataset_seed 3 --max_steps 7 --push_to_hub 1 --hub_model_id u/n --wandb_project p"
)


@pytest.mark.parametrize("words", ["", ALL, f"--prompt_template {shlex.quote(PROMPTS[0])}", "--save_dir 'a, {b}'"])
def test_the_printed_line_composes_to_the_same_settings(words):
    config = config_of(f"{BASE} {words}")
    words = shlex.split(shlex.join(hydra_overrides(config)))
    assert composed(*check_arguments(words, TrainConfig, CONF)) == config


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--w1 1", "--w1 is called --cosine_w now: type --cosine_w."),
        ("--w2=35", "--w2 is called --ibn_w now: type --ibn_w."),
        ("--w3 1", "--w3 is called --angle_w now: type --angle_w."),
        ("--evaluation_strategy no", "--evaluation_strategy is called --eval_strategy now: type --eval_strategy."),
        ("--ibnw 3", "There is no option --ibnw; did you mean --ibn_w?"),
        ("--zzz", "There is no option --zzz; angle-trainer --help lists them all."),
        ("stray", "stray belongs to no option: write --name value, and quote values with spaces."),
        ("--epochs two", "--epochs: invalid int value: 'two'."),
        ("--fp16 maybe", "--fp16: invalid switch value: 'maybe'."),
        ("--fp16 2", "--fp16: invalid choice: 2 (choose from 0, 1)."),
        ("--epochs", "--epochs: expected one argument."),
        (
            "--load_mlm_model 1",
            "--load_mlm_model 1 is refused when 1: it served --coword_random_mask_rate only; leave it out.",
        ),
        (
            "--coword_random_mask_rate 0.1",
            "--coword_random_mask_rate 0.1 is refused above 0: angle_emb trains masked words to be mask tokens; leave "
            "it out.",
        ),
        (
            "--wandb_log_model end",
            "--wandb_log_model end is refused unless false: models stay in the run folder, or go to the hub; leave it "
            "out.",
        ),
        (
            "--prompt_template '${text}'",
            "--prompt_template ${text} cannot work: ${ would begin the name of another setting.",
        ),
        (
            "--gradient_accumulation_steps 0",
            "--gradient_accumulation_steps 0 cannot work: a step needs a batch; type --gradient_accumulation_steps 1.",
        ),
    ],
)
def test_an_error_is_one_sentence(words, text):
    assert error_of(f"{BASE} {words}") == text


def test_both_required_options_are_named():
    assert error_of("") == "the following arguments are required: --model_name_or_path, --train_name_or_path."


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        ("", []),
        ("--fix_data 1", ["--fix_data has no effect: a text is cut so that its template stays whole"]),
        ("--workers 4", ["--workers has no effect: texts are tokenised once, before training"]),
        (
            "--tokenizer_padding longest",
            ["--tokenizer_padding has no effect: padding never changes an embedding"],
        ),
        ("--lora_r 8", ["--lora_r has no effect: it needs --apply_lora 1"]),
        ("--eval_steps 8", ["--eval_steps has no effect: it needs --valid_name_or_path"]),
        ("--save_strategy no --save_steps 8", ["--save_steps has no effect: it needs --save_strategy steps"]),
        ("--save_strategy epoch", ["--save_strategy writes ten checkpoints per run when it is epoch"]),
        (
            "--pretrained_lora_path x --lora_r 8 --apply_lora 1",
            ["--lora_r has no effect: the adapter of --pretrained_lora_path has its own"],
        ),
        ("--is_llm 0", ["--is_llm matters only when it is 1: decoders are detected"]),
        ("--is_llm 1", ["--fp16 defaults to 1 with --is_llm 1, as in angle_emb"]),
        ("--fp16 1", ["--fp16 is honoured; angle_emb computes in float32 when it is given"]),
        ("--seed 7", ["--seed also sets row order and dropout; in angle_emb those always use 42"]),
        ("--valid_name_or_path x", ["--valid_split_name defaults to validation; in angle_emb to train"]),
        ("--valid_name_or_path x --valid_split_name dev", []),
        (
            "--valid_name_or_path_for_callback x --prompt_template 'a {text}'",
            [
                "--valid_split_name_for_callback defaults to validation; in angle_emb to train",
                "--prompt_template applies to --valid_name_or_path_for_callback too; in angle_emb it does not",
            ],
        ),
        (
            f"{VALID} {CALLBACK} --valid_split_name x --valid_split_name_for_callback x",
            [
                "--eval_strategy also covers --valid_name_or_path_for_callback, which angle_emb measures after every "
                "epoch"
            ],
        ),
        (
            "--pooling_strategy cls_avg",
            ["--pooling_strategy depends on the text alone; in angle_emb some depend on its batch"],
        ),
        ("--apply_ese 1", ["--apply_ese also trains the second-to-last layer, and compresses exactly"]),
        (
            "--apply_ese 1 --teacher_name_or_path x --teacher_pooling_strategy all",
            [
                "--apply_ese also trains the second-to-last layer, and compresses exactly",
                "--teacher_name_or_path also trains with --apply_ese; angle_emb only logs it",
                "--teacher_pooling_strategy leaves out padding when it is all",
            ],
        ),
    ],
)
def test_differences_are_noted(words, notes):
    assert notes_of(words) == notes


def test_equal_texts_are_noted_only_if_they_are_masked():
    assert DUPLICATES in translation_of(BASE).notes
    assert DUPLICATES not in translation_of(f"{BASE} --filter_duplicate 0").notes


@pytest.mark.parametrize(
    ("precision", "setting", "name"), [("bf16", "bf16", "bf16"), ("no", "no", "float32")], ids=["able", "old"]
)
def test_fp16_without_a_gpu_goes_on(monkeypatch, precision, setting, name):
    monkeypatch.setattr("angle.training.precision.half_precision", lambda: precision)
    assert config_of(f"{BASE} --fp16 1").train.mixed_precision == setting
    assert notes_of("--fp16 1") == [f"--fp16 1 needs a GPU, and there is none: the run goes on in {name}"]
    assert config_of(f"{BASE} --is_llm 1").train.mixed_precision == "no"
    assert notes_of("--is_llm 1") == []


def test_accumulation_is_divided_among_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert config_of(f"{BASE} --gradient_accumulation_steps 16").train.gradient_accumulation_steps == 8
    assert notes_of("--gradient_accumulation_steps 16") == [
        "--gradient_accumulation_steps 16 counts all 2 processes: 8 for each",
        "the processes train one model, on the negatives of all; in angle_emb their models drift apart",
    ]
    for steps, fits in (("", "2"), ("-2", "2"), ("0", "2"), ("1", "2"), ("3", "2 or 4"), ("5", "4 or 6")):
        words = f"--gradient_accumulation_steps {steps}" if steps else ""
        assert error_of(f"{BASE} {words}") == (
            f"--gradient_accumulation_steps {steps or 1} cannot work: it is divided among 2 processes; type "
            f"--gradient_accumulation_steps {fits}."
        )


def test_a_drawn_seed_is_another_one_each_time_and_one_for_all_processes(monkeypatch):
    unseeded = BASE.replace("--seed 42", "")
    seeds = []
    for _ in range(2):
        translation = translation_of(unseeded)
        seeds.append(translation.settings["train.seed"])
        assert f"--seed -1 drew {seeds[-1]}" in translation.notes
        time.sleep(0.002)
    assert seeds[0] != seeds[1]
    assert min(seeds) >= 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    accumulated = f"{unseeded} --gradient_accumulation_steps 2"
    first = config_of(accumulated).train.seed
    time.sleep(0.002)
    assert config_of(accumulated).train.seed == first
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert error_of(accumulated) == (
        "--seed -1 draws a random one, on each machine another: give it, such as --seed 42."
    )


def test_the_environment_counts(monkeypatch):
    monkeypatch.setenv("BiLLM_START_INDEX", "31")
    assert config_of(f"{BASE} --apply_billm 1").billm.start_index == 31
    assert not config_of(BASE).billm.enabled
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert config_of(BASE).tracking.project == "p"
    assert config_of(f"{BASE} --wandb_project q").tracking.project == "q"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert config_of(BASE).tracking.project == "angle"


def run_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str) -> TrainConfig:
    """Run the command without training; return the configuration that it would train."""
    ran: list[TrainConfig] = []

    def record_config(config: TrainConfig) -> Result:
        ran.append(config)
        save_config(config, tmp_path / "config.yaml")
        return Result(tmp_path, best_score=0.5, best_step=1)

    monkeypatch.setattr("angle.training.loop.fit", record_config)
    monkeypatch.setattr(sys, "argv", ["angle-trainer", *shlex.split(words)])
    main()
    return ran[0]


def test_the_line_is_printed_with_notes_and_what_comes_next(monkeypatch, capsys, tmp_path):
    config = run_main(monkeypatch, tmp_path, f"{BASE} --prompt_template '\"{{text}}\", he said' --fix_data 1")
    line, *rest = capsys.readouterr().out.splitlines()
    assert line.startswith("same as python train.py model.name_or_path=m ")
    words = shlex.split(line)[4:]
    assert composed(*words) == config
    assert rest[:2] == [
        "note    --fix_data has no effect: a text is cut so that its template stays whole",
        f"note    {DUPLICATES}",
    ]
    swept = [word for word in words if not word.startswith(("loss.ibn_w", "train.output_dir"))]
    assert rest[-1].strip() == f"python train.py -m {shlex.join(swept)} loss.ibn_w=10,20,30 loss.angle_tau=1,20"


def test_without_a_folder_the_run_has_one_by_its_time(monkeypatch, capsys, tmp_path):
    config = run_main(monkeypatch, tmp_path, BASE.replace("--save_dir out", ""))
    printed = capsys.readouterr().out
    assert "note    --save_dir defaults to runs/<date>/<time>\n" in printed
    assert "output_dir" not in printed
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d{3}", config.train.output_dir)


def test_of_several_processes_one_prints_a_line_that_starts_as_many(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = f"{BASE} --gradient_accumulation_steps 2"
    run_main(monkeypatch, tmp_path, words)
    assert capsys.readouterr().out.startswith("same as accelerate launch --multi_gpu --num_processes 2 train.py model")
    readme = (REPO / "README.md").read_text()
    assert "accelerate launch --multi_gpu --num_processes 4 train.py" in readme
    monkeypatch.setenv("RANK", "1")
    run_main(monkeypatch, tmp_path, words)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "--streaming",
            "data.streaming=true needs train.max_steps, because a stream has no known length: add for example "
            "train.max_steps=1000. Here train.max_steps is --max_steps, data.streaming is --streaming.",
        ),
        ("--load_kbit 4", "add lora=r16. Here model.load_kbit is --load_kbit, lora=r16 is --apply_lora 1."),
        ("--valid_name_or_path t --valid_split_name train --train_name_or_path t",
         "for example data.valid.split=validation. Here data.valid.split is --valid_split_name."),
        ("--maxlen 1", "it must be at least 2. Here model.max_length is --maxlen."),
    ],
)  # fmt: skip
def test_messages_name_the_options(monkeypatch, capsys, tmp_path, words, text):
    with pytest.raises(SystemExit) as caught:
        run_main(monkeypatch, tmp_path, f"{BASE} {words}")
    assert caught.value.code == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("Error: ")
    assert error.endswith(f"{text}\n")


def rows_of(data_format: str, path: Path, rows: int) -> Path:
    """Write rows of the built-in sample; labels are 0 or 1, as in NLI."""
    columns = sample.columns(data_format, "train", rows)
    if data_format == "A":
        columns["label"] = [int(label > 3) for label in columns["label"]]
    return write_jsonl(path, (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small decoder with a language-model head, as they come."""
    torch.manual_seed(0)
    tokenizer = decoder_tokenizer(start=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_cls_on_a_decoder_is_refused_by_the_option_s_name(monkeypatch, capsys, llama, tmp_path):
    rows = rows_of("B", tmp_path / "b.jsonl", 8)
    words = f"--model_name_or_path {llama} --train_name_or_path {rows} --maxlen 60 --seed 1 --save_dir {tmp_path}/run"
    monkeypatch.setattr(sys, "argv", ["angle-trainer", *words.split()])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == (
        "Error: pooling.strategy=cls cannot work with LlamaModel: in a decoder the first token has seen no other; "
        "choose avg or last, or billm=all. Here pooling.strategy is --pooling_strategy, billm=all is --apply_billm 1.\n"
    )


def test_the_class_of_a_decoder_is_checked(monkeypatch, capsys, llama, tmp_path):
    words = f"--model_name_or_path {llama} --train_name_or_path sample --maxlen 60 --seed 1 --save_dir {tmp_path}/run"
    words += " --apply_billm 1 --billm_model_class MistralForCausalLM"
    monkeypatch.setattr(sys, "argv", ["angle-trainer", *words.split()])
    with pytest.raises(SystemExit):
        main()
    assert (
        "billm.model_class=MistralForCausalLM contradicts the model, which is a LlamaModel" in capsys.readouterr().err
    )


def test_the_same_command_again_finds_the_run_though_the_seed_was_drawn(monkeypatch, capsys, tmp_path):
    rows = rows_of("A", tmp_path / "a.jsonl", 16)
    words = f"--model_name_or_path tiny --train_name_or_path {rows} --maxlen 64 --max_steps 2 --save_dir {tmp_path}/run"
    monkeypatch.setattr(sys, "argv", ["angle-trainer", *words.split()])
    main()
    seed = load_config(tmp_path / "run" / "config.yaml").train.seed
    assert f"--seed -1 drew {seed}\n" in capsys.readouterr().out
    main()
    printed = capsys.readouterr().out
    assert f"--seed is {seed}, with which the run in --save_dir was started\n" in printed
    assert "holds this run already, finished" in printed


def test_the_command_is_installed_under_its_name():
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"angle-trainer": f"{main.__module__}:{main.__name__}"}


def test_help_is_readable_and_comes_fast(tmp_path):
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "angle.compat.angle_trainer", "--help"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO), "COLUMNS": "100"}, capture_output=True, text=True,
    )  # fmt: skip
    assert time.perf_counter() - begun < 3
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  --{name} " in done.stdout for name in OPTIONS)
    assert re.search(r"\n  --ibn_w FLOAT +weight of the in-batch contrastive loss \(default: 30.0\) +\[loss.ibn_w\]\n",
                     re.sub(r"\n {20,}", " ", done.stdout))  # fmt: skip


def test_the_command_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'peft', 'wandb', 'accelerate', 'hydra'}"
    code = f"import sys, angle.compat.angle_trainer; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def trainer(launcher: list[str], words: str, folder: Path, **env: str) -> str:
    """Run the command as a process of its own, on the CPU; return what it prints."""
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "angle.compat.angle_trainer", *shlex.split(words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_reference_s_command_for_bert_on_two_processes(tmp_path):
    rows_of("A", tmp_path / "nli.jsonl", 300)
    printed = trainer(
        ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"],
        "--train_name_or_path nli.jsonl --save_dir ckpts/bert-base-nli-test --model_name_or_path tiny "
        "--pooling_strategy cls --maxlen 64 --ibn_w 30.0 --cosine_w 0.0 --angle_w 1.0 --angle_tau 20.0 "
        "--learning_rate 5e-5 --push_to_hub 0 --logging_steps 10 --save_steps 100 --warmup_steps 50 --batch_size 128 "
        "--seed 42 --gradient_accumulation_steps 16 --epochs 10 --fp16 1",
        tmp_path,
        WANDB_MODE="disabled",
    )
    assert printed.count("same as accelerate launch --multi_gpu --num_processes 2 train.py ") == 1
    assert "note    --fp16 1 needs a GPU, and there is none: the run goes on in " in printed
    assert "note    --gradient_accumulation_steps 16 counts all 2 processes: 8 for each\n" in printed
    assert "steps   10 of 300 rows, learning rate 5e-05, linear, seed 42\n" in printed
    assert ", 2 processes, " in printed
    assert printed.count("Saved   ckpts/bert-base-nli-test/final\n") == 1
    assert json.loads((tmp_path / "ckpts/bert-base-nli-test/run.json").read_text())["finished"] is True


@pytest.mark.slow
def test_the_reference_s_command_for_llama_trains_what_the_printed_line_trains(tmp_path, llama, monkeypatch):
    rows_of("B", tmp_path / "nli.jsonl", 130)
    printed = trainer(
        [],
        "--train_name_or_path nli.jsonl --save_dir ckpts/NLI-STS-angle-llama-7b --model_name_or_path llama "
        "--apply_billm 1 --billm_model_class LlamaForCausalLM --load_kbit 4 --apply_lora 1 --lora_r 64 "
        "--lora_alpha 128 --lora_dropout 0.1 --is_llm 1 --pooling_strategy avg --maxlen 60 --ibn_w 20.0 --cosine_w 0.0 "
        "--angle_w 1.0 --learning_rate 2e-4 --push_to_hub 0 --logging_steps 5 --save_steps 50 --warmup_steps 50 "
        "--batch_size 120 --seed 42 --gradient_accumulation_steps 32 --epochs 2 --fp16 1",
        tmp_path,
        BiLLM_START_INDEX="0",
        WANDB_MODE="disabled",
    )
    assert "both directions" in printed
    assert "Saved   ckpts/NLI-STS-angle-llama-7b/final\n" in printed
    words = shlex.split(printed.splitlines()[0])
    assert words[:4] == ["same", "as", "python", "train.py"]
    assert "billm.start_index=0" in words
    words = [word for word in words[4:] if not word.startswith("train.output_dir=")]
    monkeypatch.chdir(tmp_path)
    fit(composed(*words, "train.output_dir=ours"))
    one, other = (
        load_file(tmp_path / folder / "final" / "adapter_model.safetensors")
        for folder in ("ckpts/NLI-STS-angle-llama-7b", "ours")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_documented_commands_compose():
    text = (REPO / "docs" / "migrating.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"(?:angle-trainer|-m angle\.angle_trainer) (--.+)", text)
    assert len(commands) == 2
    for words in commands:
        config_of(words)


def test_the_options_are_documented():
    lines = (REPO / "docs" / "migrating.md").read_text().splitlines()
    expected = []
    for option in OPTIONS.values():
        default = "–" if option.default is None or option.is_flag else f"`{option.default}`"
        setting = f"`{option.setting}`" if option.setting else "–"
        expected.append(f"| `--{option.name}` | {default} | {setting} | {option.note} |".replace("|  |", "| |"))
    assert [line for line in lines if line.startswith("| `--")] == expected

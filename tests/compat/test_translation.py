"""Every option of angle_emb sets a setting, the printed command does the same, and differences are noted."""

from __future__ import annotations

import shlex
import time
from typing import Any

import pytest
from composition import CONF, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from reference_command import (
    BASE,
    CALLBACK,
    DUPLICATES,
    OPTIONS,
    VALID,
    cached_config_of,
    changes,
    clear_environment,
    config_of,
    error_of,
    notes_of,
    translation_of,
)

from angle import TrainConfig
from angle.cli.arguments import check_arguments
from angle.config.keys import flatten
from angle.config.overrides import hydra_overrides


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


def test_defaults_are_those_of_angle_emb():
    assert changes(config_of(BASE), TrainConfig()) == {
        "model.name_or_path": "m",
        "model.max_length": 512,
        "pooling.strategy": "cls",
        "loss.cosine_w": 0.0,
        "loss.ibn_w": 30.0,
        "loss.angle_w": 1.0,
        "loss.reverse_w": 0.0,
        "loss.cosine_tau": 20.0,
        "loss.angle_tau": 20.0,
        "data.train.name_or_path": "t.jsonl",
        "train.dropout": "own",
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
            "loss.ibn_tau": 20.0, "data.train.split": None,
            "tracking.mode": "disabled", "hub.push": False}  # fmt: skip
    assert {key: settings[key] for key in same_as_schema} == same_as_schema


LORA = {"lora.enabled": True, "lora.alpha": 32}  # rank and dropout are the schema's own
ESE, TEACHER = {"ese.enabled": True}, {"teacher.enabled": True, "teacher.name_or_path": "x", "teacher.pooling": "cls"}
VALID_SET, STS_SET = {"data.valid.name_or_path": "v.jsonl"}, {"data.valid_sts.name_or_path": "s.jsonl"}
SETTINGS_OF: list[tuple[str, dict[str, Any]]] = [
    ("--model_name_or_path x", {"model.name_or_path": "x"}),
    ("--tokenizer_name_or_path x", {"model.tokenizer_name_or_path": "x"}),
    ("--load_mlm_model 1", {}),
    ("--pretrained_model_path x", {"model.name_or_path": "x", "model.tokenizer_name_or_path": "m"}),
    ("--pretrained_model_path x --tokenizer_name_or_path y",
     {"model.name_or_path": "x", "model.tokenizer_name_or_path": "y"}),
    ("--pretrained_lora_path x", {"model.adapter": "x"}),
    ("--pretrained_lora_path x --apply_lora 1 --lora_r 8", {"model.adapter": "x"}),
    ("--pooling_strategy cls_avg", {"pooling.strategy": "cls_avg"}),
    ("--pooling_strategy last", {"pooling.strategy": "last", "model.end_token": False}),
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


def test_every_option_has_a_test_case():
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
    *("~/x", "C:\\x\\", "../x", "/x/y-z_1.json", "é.jsonl", "choice(1,2)", "nan", "a: b", "@x", "+x"),
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
def test_printed_command_has_the_same_settings(reference):
    config = cached_config_of(reference)
    words = OverridesParser.create().parse_overrides(shlex.split(shlex.join(hydra_overrides(config))))
    assert not any(word.is_sweep_override() for word in words)
    assert {word.key_or_group: word.value() for word in words} == changes(config, TrainConfig())


ALL = (
    "--apply_lora 1 --lora_target_modules q_proj,v_proj --load_kbit 4 --is_llm 1 --apply_billm 1 --apply_ese 1 "
    "--teacher_name_or_path 'a b' --dataset_seed 3 --max_steps 7 --push_to_hub 1 --hub_model_id u/n --wandb_project p"
)


@pytest.mark.parametrize("words", ["", ALL, f"--prompt_template {shlex.quote(PROMPTS[0])}", "--save_dir 'a, {b}'"])
def test_printed_command_composes_to_the_same_settings(words):
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
        (
            "--pretrained_lora_path x",
            ["--pretrained_lora_path is trained further without --apply_lora too; angle_emb ignores it then"],
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
def test_fp16_without_a_gpu_falls_back(monkeypatch, precision, setting, name):
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


def test_environment_variables_are_translated(monkeypatch):
    monkeypatch.setenv("BiLLM_START_INDEX", "31")
    assert config_of(f"{BASE} --apply_billm 1").billm.start_index == 31
    assert not config_of(BASE).billm.enabled
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert config_of(BASE).tracking.project == "p"
    assert config_of(f"{BASE} --wandb_project q").tracking.project == "q"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert config_of(BASE).tracking.project == "angle"

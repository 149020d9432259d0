"""angle_emb's command: what it prints, how its errors name its options, and angle_emb's own examples."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import fork_server
import pytest
import torch
from composition import composed
from conftest import REPO, decoder_tokenizer, launch_ranks, sample_rows, write_jsonl
from reference_command import (
    BASE,
    DUPLICATES,
    clear_environment,
)
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from angle import TrainConfig, fit
from angle.compat.angle_trainer import main
from angle.config.build import load_config
from angle.config.record import write_config
from angle.training.result import Result


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


def run_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str) -> TrainConfig:
    """Run the command without training; return the configuration that it would train."""
    ran: list[TrainConfig] = []

    def record_config(config: TrainConfig) -> Result:
        ran.append(config)
        write_config(tmp_path, config)
        return Result(tmp_path, best_score=0.5, best_step=1)

    monkeypatch.setattr("angle.training.loop.fit", record_config)
    monkeypatch.setattr(sys, "argv", ["angle-trainer", *shlex.split(words)])
    main()
    return ran[0]


def test_equivalent_command_notes_and_next_steps_are_printed(monkeypatch, capsys, tmp_path):
    config = run_main(monkeypatch, tmp_path, f"{BASE} --prompt_template '\"{{text}}\", he said' --fix_data 1")
    line, *rest = capsys.readouterr().out.splitlines()
    assert line.startswith("same as python train.py model.name_or_path=m ")
    words = shlex.split(line)[4:]
    assert composed(*words) == config
    assert rest[0] == "note    --fix_data has no effect: a text is cut so that its template stays whole"
    assert f"{rest[1]} {rest[2].strip()}" == f"note    {DUPLICATES}"
    swept = [word for word in words if not word.startswith(("loss.ibn_w", "loss.angle_tau", "train.output_dir"))]
    (sweep,) = (line for line in re.sub(r" \\\n +", " ", "\n".join(rest)).splitlines() if "train.py -m " in line)
    assert sweep.strip() == f"python train.py -m {shlex.join(swept)} loss.ibn_w=10,20,30 loss.angle_tau=1,20"


def test_default_run_folder_is_named_by_the_time(monkeypatch, capsys, tmp_path):
    config = run_main(monkeypatch, tmp_path, BASE.replace("--save_dir out", ""))
    printed = capsys.readouterr().out
    assert "note    --save_dir defaults to runs/<date>/<time>\n" in printed
    assert "output_dir" not in printed
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d{3}", config.train.output_dir)


def test_equivalent_command_starts_as_many_processes(monkeypatch, capsys, tmp_path):
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
    table = sample_rows(data_format, "train", rows)
    if data_format == "A":
        table = [row | {"label": int(row["label"] > 3)} for row in table]
    return write_jsonl(path, table)


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


def test_repeated_command_finds_the_run_with_a_drawn_seed(monkeypatch, capsys, tmp_path):
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


def test_the_command_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'peft', 'wandb', 'accelerate', 'hydra'}"
    code = f"import sys, angle.compat.angle_trainer; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_angle_emb_command_for_bert_on_two_processes(tmp_path):
    rows_of("A", tmp_path / "nli.jsonl", 300)
    words = (
        "--train_name_or_path nli.jsonl --save_dir ckpts/bert-base-nli-test --model_name_or_path tiny "
        "--pooling_strategy cls --maxlen 64 --ibn_w 30.0 --cosine_w 0.0 --angle_w 1.0 --angle_tau 20.0 "
        "--learning_rate 5e-5 --push_to_hub 0 --logging_steps 10 --save_steps 100 --warmup_steps 50 --batch_size 128 "
        "--seed 42 --gradient_accumulation_steps 16 --epochs 10 --fp16 1"
    )
    command = ["-m", "angle.compat.angle_trainer", *shlex.split(words)]
    ranks = launch_ranks(command, tmp_path, WANDB_MODE="disabled")
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr[-3000:]
    printed = ranks[0].stdout + ranks[1].stdout
    assert printed.count("same as accelerate launch --multi_gpu --num_processes 2 train.py ") == 1
    assert "note    --fp16 1 needs a GPU, and there is none: the run goes on in " in printed
    assert "note    --gradient_accumulation_steps 16 counts all 2 processes: 8 for each\n" in printed
    assert "steps   10 of 300 rows, learning rate 5e-05, linear, seed 42\n" in printed
    assert ", 2 processes, " in printed
    assert printed.count("Saved   ckpts/bert-base-nli-test/final\n") == 1
    assert json.loads((tmp_path / "ckpts/bert-base-nli-test/run.json").read_text())["finished"] is True


@pytest.mark.slow
def test_angle_emb_command_for_llama_trains_as_the_printed_command(tmp_path, llama, monkeypatch):
    rows_of("B", tmp_path / "nli.jsonl", 130)
    words = (
        "--train_name_or_path nli.jsonl --save_dir ckpts/NLI-STS-angle-llama-7b --model_name_or_path llama "
        "--apply_billm 1 --billm_model_class LlamaForCausalLM --load_kbit 4 --apply_lora 1 --lora_r 64 "
        "--lora_alpha 128 --lora_dropout 0.1 --is_llm 1 --pooling_strategy avg --maxlen 60 --ibn_w 20.0 --cosine_w 0.0 "
        "--angle_w 1.0 --learning_rate 2e-4 --push_to_hub 0 --logging_steps 5 --save_steps 50 --warmup_steps 50 "
        "--batch_size 120 --seed 42 --gradient_accumulation_steps 32 --epochs 2 --fp16 1"
    )
    command = ["-m", "angle.compat.angle_trainer", *shlex.split(words)]
    env = fork_server.environment(BiLLM_START_INDEX="0", WANDB_MODE="disabled")
    done = fork_server.run(command, tmp_path, env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout
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

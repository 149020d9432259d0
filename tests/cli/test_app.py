"""The command line before anything heavy is imported: what is refused, how folders are named, how fast help is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
from composition import composed
from conftest import REPO, start_here

import angle
from angle.cli.app import launch
from angle.cli.arguments import check_arguments
from angle.cli.sweep import SLUG_LENGTH, select_overrides, slug, swept_keys
from angle.config import POOLING_NAMES, EvaluateConfig, TrainConfig
from angle.errors import ConfigError

CONF = REPO / "conf"
QUOTING = (
    "write name=value, and quote values with spaces, braces or commas, for example 'model.prompt=\"Query: {text}\"'."
)
POOLINGS = ", ".join(sorted(("auto", *POOLING_NAMES)))


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("train.epoch=2", "There is no setting train.epoch; did you mean train.epochs?"),
        ("+train.epoch=2", "There is no setting train.epoch; did you mean train.epochs?"),
        ("++train.epoch=2", "There is no setting train.epoch; did you mean train.epochs?"),
        ("batch_size=8", "There is no setting batch_size; did you mean train.batch_size?"),
        ("model.nam=8", "There is no setting model.nam; did you mean model.name_or_path?"),
        (
            "data.train.label_mapp.x=1",
            "There is no setting data.train.label_mapp.x; did you mean data.train.label_map?",
        ),
        ("pooling=mena", f"pooling=mena is not an option; did you mean mean? pooling can be: {POOLINGS}."),
        ("pooling=cls,zzz", f"pooling=zzz is not an option. pooling can be: {POOLINGS}."),
        ("+pooling=zzz", f"pooling=zzz is not an option. pooling can be: {POOLINGS}."),
        ("pooling=null", f"pooling=null is not an option. pooling can be: {POOLINGS}."),
        ("modell=tiny", "There is no group modell; did you mean model?"),
        ("accelerate=one_gpu", "There is no setting accelerate; python train.py --help lists them all."),
        ("train.epochs", "train.epochs sets nothing: write name=value, for example train.epochs=..."),
        ("model.prompt={text} here", f"model.prompt={{text}} here is not a setting: {QUOTING}"),
        ("kill1", "kill1 sets nothing: write name=value, for example model.name_or_path=kill1"),
        ("--lrr=3", "--lrr=3 is not a flag: a setting is written without dashes, as group.name=value."),
        (
            "--epoch=3",
            "--epoch=3 is not a flag: a setting is written without dashes, as group.name=value; did you mean "
            "train.epochs?",
        ),
        (
            "--experimental-rerun=x",
            "--experimental-rerun is not supported: python train.py train.resume=RUN resumes a run.",
        ),
        ("train.epochs=two", "train.epochs=two cannot work: it must be a whole number."),
        ("train.epochs=", "train.epochs= cannot work: it must be a whole number."),
        ("train.batch_size=2.5", "train.batch_size=2.5 cannot work: it must be a whole number."),
        ("loss.ibn_w=much", "loss.ibn_w=much cannot work: it must be a number."),
        ("loss.ibn_w=[1]", "loss.ibn_w=[1] cannot work: it must be a number."),
        ("data.shuffle=maybe", "data.shuffle=maybe cannot work: it must be true or false."),
        ("train.epochs=1,two", "train.epochs=two cannot work: it must be a whole number."),
        ("~train.epoch", "There is no setting train.epoch; did you mean train.epochs?"),
        ("~train.epochs", "~train.epochs cannot work, because a setting always has a value: write train.epochs=VALUE."),
        (
            "~data.train.columns",
            "~data.train.columns cannot work, because a setting always has a value: write data.train.columns=VALUE, or "
            "leave out one of its entries as ~data.train.columns.NAME.",
        ),
    ],
)
def test_invalid_overrides(word, text):
    with pytest.raises(ConfigError) as caught:
        check_arguments([word], TrainConfig, CONF)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("word", "setting"),
    [("data.train=x.jsonl", "data.train.name_or_path"), ("train=x", "train."), ("lora=r16,lora.r=3", "lora")],
)
def test_a_group_that_is_given_a_value_is_answered_with_its_settings(word, setting):
    with pytest.raises(ConfigError) as caught:
        check_arguments([word], TrainConfig, CONF)
    assert setting in str(caught.value)
    assert "tracking" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (
            "tracking=[online,offline]",
            "tracking=[online,offline] contradicts itself: online and offline both set tracking.mode; leave one of "
            "them out.",
        ),
        (
            "tracking=[none,tensorboard]",
            "tracking=[none,tensorboard] contradicts itself: leave none out, or type tracking=none.",
        ),
        (
            "tracking=[online,tensorbord]",
            "tracking=tensorbord is not an option; did you mean tensorboard? tracking can be: mlflow, none, offline, "
            "online, tensorboard.",
        ),
        ("teacher=[none,self]", "teacher=[none,self] is not an option. teacher can be: model, none, self."),
    ],
)
def test_options_that_cannot_be_chosen_together(word, text):
    with pytest.raises(ConfigError) as caught:
        check_arguments([word], TrainConfig, CONF)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("words", "mode", "tensorboard"),
    [
        (["tracking=online"], "online", False),
        (["tracking=tensorboard"], "disabled", True),
        (["tracking=[online,tensorboard]"], "online", True),
        (["tracking=offline", "tracking.tensorboard=true"], "offline", True),
    ],
    ids=str,
)
def test_several_trackers_compose(words, mode, tensorboard):
    tracking = composed(*check_arguments(words, TrainConfig, CONF)).tracking
    assert (tracking.mode, tracking.tensorboard) == (mode, tensorboard)


def test_the_command_line_stays_as_it_was_typed(tmp_path, monkeypatch):
    """What Hydra is given differs from it; run.json and the suggested sweep report what was typed."""
    typed = ["train.py", "data.train.columns={text1: a}", "train.epochs=2", "hydra/job_logging=none"]
    typed += ["hydra/hydra_logging=none", "tracking=[offline,tensorboard]"]
    seen = []

    def task(config):
        seen.append((list(sys.argv), config.data.train.columns, config.train.epochs, config.tracking.tensorboard))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", list(typed))
    launch(task, TrainConfig, "train", CONF)
    assert seen == [(typed, {"text1": "a"}, 2, True)]
    assert sys.argv == typed


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train.epochs=2", "loss.ibn_w=null", "data.shuffle=false", "model.prompt='Query: {text}'"],
        ["+train.epochs=2", "++train.epochs=2", "~lora"],
        ["-m", "train.epochs=1,2", "loss.ibn_w=choice(1,2)", "train.seed=range(1,4)", "model=tiny,minilm"],
        ["data.train.columns={text1: a, text2: b}", "data.train.label_map={x: 1, y: null}"],
        ["data.train.columns.text1=a", "+data.test.label_map.x=null"],
        ["data.train.name_or_path=[a.jsonl,b.jsonl]", "lora.target_modules=[q,v]", "tracking.tags=[]"],
        ["hydra.job.name=x", "--cfg", "job"],
        ["train.output_dir=${oc.env:HOME}/x"],
        ["experiment=nli_minilm", "lora=r16", "lora.r=4"],
    ],
    ids=" ".join,
)
def test_valid_overrides(words):
    check_arguments(words, TrainConfig, CONF)


def test_overrides_of_evaluate_and_convert():
    check_arguments(["tasks=[stsb,a.jsonl]", "columns={text1: a}", "label_map.x=1"], EvaluateConfig, CONF)
    with pytest.raises(ConfigError, match=r"^There is no setting task; did you mean tasks\?$"):
        check_arguments(["task=stsb"], EvaluateConfig, CONF)


@pytest.mark.parametrize("key", ["data.train.columns={text1: a}", "data.train.columns.text1=a"])
def test_columns_can_be_typed_as_the_error_messages_say(command, key):
    done = command("train.py", "--cfg", "job", key)
    assert (done.returncode, done.stderr) == (0, "")
    assert "columns:\n      text1: a\n" in done.stdout


def test_label_map_can_be_typed_as_the_error_messages_say(command):
    done = command("train.py", "--cfg", "job", "data.train.label_map={high: 1, 0: null}")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"label_map:\n +high: 1(\.0)?\n +'?0'?: null\n", done.stdout)


@pytest.mark.parametrize(
    "words", [["pooling=cls,avg"], ["--epochs=3"], ["model@x=tiny"], ["hydrax=1"], ["-m", "train.epochs=1,two"]]
)
def test_what_hydra_would_refuse_is_refused_in_one_line(command, words):
    done = command("train.py", *words)
    assert done.returncode != 0
    assert re.fullmatch(r"Error: .+\n", done.stderr)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["loss.ibn_w=10", "train.seed=1"], "loss.ibn_w-10_train.seed-1"),
        (["model.name_or_path=org/model"], "model.name_or_path-org-model"),
        (["train.output_dir=/a b/../{c}"], "train.output_dir-a-b-..-c-"),
        ([], "defaults"),
    ],
)
def test_slug_is_the_name_of_one_folder(words, name):
    assert slug(words) == name


def test_slug_of_a_long_list_is_cut_and_stays_distinct():
    words = [f"data.train.name_or_path={'x' * 300}{end}" for end in "ab"]
    slugs = [slug([word]) for word in words]
    assert {len(name) for name in slugs} == {SLUG_LENGTH}
    assert slugs[0] != slugs[1]
    assert slug([words[0]]) == slugs[0]
    assert len(slug(["x" * SLUG_LENGTH])) == SLUG_LENGTH == len(slug(["x" * (SLUG_LENGTH + 1)]))


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["loss.ibn_w=1,2", "train.seed=1", "++model.prompt='{text}, {text}'"], {"loss.ibn_w"}),
        (["model=tiny,minilm", "+loss.angle_tau=range(1,3)", "lora=r8"], {"model", "loss.angle_tau"}),
        (["data.train.name_or_path=[a,b]", "train.seed=1"], {"data.train.name_or_path", "train.seed"}),
    ],
)
def test_jobs_are_named_by_the_settings_that_vary(words, keys):
    assert swept_keys(words) == keys
    assert {word.lstrip("+").split("=")[0] for word in select_overrides(words, keys)} == keys


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["loss.angle_tau=1,-5"], "loss.angle_tau=-5 cannot work"),
        (["lora=r8,none", "lora.alpha=8,16"], "lora.alpha=8 has no effect while lora is off"),
        (["pooling.strategy=avg,clss"], "pooling.strategy=clss"),
        (["train.output_dir=one", "train.seed=1,2"], "train.output_dir=one is one folder for several jobs"),
        (["train.output_dir=one,./one"], "train.output_dir=./one is one folder for several jobs"),
    ],
)
def test_every_job_of_a_sweep_is_checked_before_the_first(command, tmp_path, words, text):
    done = command("train.py", "-m", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"Error: .+\n", done.stderr)
    assert text in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_task_sees_the_command_line_as_typed(monkeypatch, tmp_path):
    typed = ["train.py", "data.train.columns={text1: a}", "--multirun", "train.seed=1"]
    seen: list[tuple[str, ...]] = []
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", typed)
    launch(lambda config: seen.append((*sys.argv, config.data.train.columns["text1"])), TrainConfig, "train", CONF)
    assert seen == [("train.py", "data.train.columns={text1: a}", "--multirun", "train.seed=1", "a")]


def test_settings_are_composed_once(monkeypatch, tmp_path):
    from hydra._internal.hydra import Hydra

    compose, get_mode, composed_names = Hydra.compose_config, Hydra.get_mode, list[str]()

    def compose_and_count(self, config_name, *arguments, **options):
        composed_names.append(config_name)
        return compose(self, config_name, *arguments, **options)

    monkeypatch.setattr(Hydra, "compose_config", compose_and_count)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "train.seed=1"])
    launch(lambda _: None, TrainConfig, "train", CONF)
    assert composed_names == ["train"]
    assert Hydra.get_mode is get_mode


@pytest.mark.parametrize(("script", "parent"), [("train.py", "runs"), ("evaluate.py", "evaluations")])
def test_a_run_is_named_by_date_and_time(command, script, parent):
    done = command(script, "--cfg", "hydra", "--resolve", "--package", "hydra.run")
    match = re.search(rf"dir: {parent}/(\d{{4}}-\d\d-\d\d/\d\d-\d\d-\d\d)-\d{{3}}$", done.stdout, re.MULTILINE)
    assert match, done.stdout + done.stderr
    assert abs(time.mktime(time.strptime(match[1], "%Y-%m-%d/%H-%M-%S")) - time.time()) < 60


def test_processes_of_one_launcher_have_one_folder(tmp_path):
    words = [sys.executable, str(REPO / "train.py"), "--cfg", "hydra", "--resolve", "--package", "hydra.run"]
    env = os.environ | {"WORLD_SIZE": "2"}
    first = subprocess.check_output(words, cwd=tmp_path, env=env)  # this process is the launcher
    time.sleep(1.1)
    assert subprocess.check_output(words, cwd=tmp_path, env=env) == first


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "convert.py"])
def test_help_is_fast_and_writes_nothing(tmp_path, script):
    used = os.times().children_user
    words = [sys.executable, str(REPO / script), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert os.times().children_user - used < 1.5
    assert (done.returncode, done.stderr) == (0, "")
    assert "Presets, as group=option:\n\n" in done.stdout
    assert "model: angle_bert, bert_base, bert_large," in done.stdout
    assert "accelerate: " not in done.stdout  # launch files are no options
    assert re.search(r"\n  max_length=null +Maximum tokens per text,", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("topic", "texts"),
    [
        ("lora", ["lora=r64 Adapters of rank 64", "\nlora.r=32 Rank. It is a whole number of at least 1.\n"]),
        ("train.token_budget", ["train.token_budget=null\n  Maximum tokens per micro-batch, or auto"]),
        ("experiment", ["experiment=stsb_minilm all-MiniLM-L6-v2 on the STS benchmark"]),
        ("data.test", ["\n\ndata.test.columns={}\n", "Set by data=nli_a ({text1: sentence1,"]),
    ],
)
def test_help_on_a_topic_tells_all_of_it(tmp_path, topic, texts):
    done = start_here("train.py", "--help", topic, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    printed = " ".join(done.stdout.split())
    assert [text for text in texts if " ".join(text.split()) not in printed] == []
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "hub.push" not in done.stdout


def test_help_on_what_does_not_exist(tmp_path):
    done = start_here("train.py", "--help", "train.epoch", folder=tmp_path)
    assert done.stderr == "Error: There is no setting train.epoch; did you mean train.epochs?\n"


def test_help_shows_the_values_of_the_command_line(tmp_path):
    done = start_here("train.py", "--help", "lora.r", "lora=r8", folder=tmp_path)
    assert done.stdout.startswith("lora.r=8\n  Rank.\n  It is a whole number of at least 1; by default 32.\n")


def test_cfg_job_prints_the_composed_settings(command, tmp_path):
    done = command("train.py", "--cfg", "job", "model=llama7b", "lora=r64", "loss=format_b")
    assert (done.returncode, done.stderr) == (0, "")
    assert "name_or_path: NousResearch/Llama-2-7b-chat-hf\n" in done.stdout
    assert "data_format:\n  name: B\n" in done.stdout
    assert not list(tmp_path.iterdir())


def test_configuration_and_launch_import_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'peft', 'wandb', 'accelerate'}"
    code = f"import sys, angle, angle.config, angle.cli.app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("script", "word"), [("evaluate.py", "tasks=[sts]"), ("convert.py", "output_dir=new")])
def test_the_model_to_evaluate_or_convert_must_be_named(command, tmp_path, script, word):
    done = command(script, word)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: model.name_or_path is missing: python {script} model.name_or_path=RUN takes")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(command):
    done = command("train.py", "train.output_dir=/proc/x", "train.max_steps=1")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: train.output_dir=/proc/x cannot be written to (No such file or directory): give another folder.\n"
    )


def test_dir_lists_the_public_names():
    assert {"AnglE", "fit", "Prompts"} <= set(dir(angle))

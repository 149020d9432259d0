"""The schema: what composes, what is refused with which message, and what survives the disk."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml
from composition import CONF, SCHEMAS, composed
from conftest import REPO

from angle.cli.arguments import check_arguments
from angle.config import FORMAT_NAMES, LOSS_TERM_SPECS, POOLING_NAMES, EvaluateConfig, LossConfig, TrainConfig
from angle.config.build import build_config, load_config
from angle.config.keys import flatten, setting_types, unflatten
from angle.config.loss import ANGLE, COSINE
from angle.config.overrides import hydra_overrides
from angle.config.record import write_config
from angle.config.resume import config_diff, resume_config
from angle.errors import ConfigError

#: conf/accelerate holds launch files, no group, and conf/launcher sets what is Hydra's.
OPTIONS = sorted(
    (file.parent.name, file.stem)
    for file in CONF.glob("*/*.yaml")
    if file.parent.name not in ("accelerate", "launcher")
)
#: What angle_emb documents, by data format; all other weights are 0.
DOCUMENTED_WEIGHTS = {
    "A": {"cosine_w": 1.0, "ibn_w": 20.0, "angle_w": 1.0},
    "B": {"ibn_w": 20.0, "angle_w": 1.0},
    "C": {"ibn_w": 20.0},
}


def build(settings: dict[str, Any], schema: Any = TrainConfig) -> Any:
    """Return the configuration of settings by dotted key."""
    return build_config(unflatten(settings), schema)


def error_of(settings: dict[str, Any], schema: Any = TrainConfig) -> str:
    """Return the error message for settings, by dotted key, that cannot work."""
    with pytest.raises(ConfigError) as caught:
        build(settings, schema)
    return str(caught.value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_composed_default_is_the_python_default(name):
    assert composed(name=name) == SCHEMAS[name]()


def test_hydra_overrides_compose_to_the_same_config():
    config = build(
        {
            "model.prompt": 'Say "{text}", {other}:\\',
            "model.is_llm": True,
            "data.train.name_or_path": ["a b.jsonl", "null"],
            "data.train.columns": {"text1": "first text", "label": "1e3"},
            "data.train.label_map": {"entailment": 1, "2": None, "a: b": 0.5},
            "train.learning_rate": 3e-5,
            "train.warmup_steps": 100,
            "train.save_steps": 0,
            "tracking.tags": ["x", "true"],
        }
    )
    words = hydra_overrides(config)
    assert len(words) == 9
    assert composed(*check_arguments(words, TrainConfig, CONF)) == config
    assert hydra_overrides(TrainConfig()) == []


def test_number_of_config_group_options():
    assert len(OPTIONS) == 72 + len(POOLING_NAMES)
    assert {group for group, _ in OPTIONS} == {
        *("billm", "data", "data_format", "ese", "experiment", "hparams", "lora"),
        *("loss", "model", "pooling", "teacher", "tracking"),
    }


@pytest.mark.parametrize(("group", "option"), [pytest.param(*option, id="=".join(option)) for option in OPTIONS])
def test_every_option_composes_to_what_its_file_says(group, option):
    needed = {"data=files": "data.train.name_or_path=x.jsonl", "teacher=model": "teacher.name_or_path=x"}
    words = [word for choice, word in needed.items() if choice == f"{group}={option}"]
    text = (CONF / group / f"{option}.yaml").read_text()
    settings = yaml.safe_load(text)
    config = composed(f"{group}={option}", *words)
    settings.pop("defaults", None)
    if "@package _global_" not in text:
        config = getattr(config, group)
    if option == "files":  # its path is the command line's
        return
    composed_values = flatten(config)
    for key, value in flat(settings).items():
        actual = composed_values[key]
        assert actual == (pytest.approx(float(value)) if isinstance(actual, float) else value), key


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}, renamings kept whole."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        branch = isinstance(value, dict) and key != "columns"
        leaves |= flat(value, f"{prefix}{key}.") if branch else {f"{prefix}{key}": value}
    return leaves


def test_llama_with_lora_on_triples():
    config = composed("model=llama7b", "lora=r64", "loss=format_b")
    assert config.model.name_or_path == "NousResearch/Llama-2-7b-chat-hf"
    assert dataclasses.asdict(config.lora) == {
        "enabled": True,
        "r": 64,
        "alpha": 128,
        "dropout": 0.1,
        "target_modules": None,
    }
    loss = config.loss
    assert (loss.cosine_w, loss.ibn_w, loss.angle_w) == (0.0, 20.0, 1.0)
    assert (loss.multiplier(COSINE), loss.ibn_tau, loss.multiplier(ANGLE)) == (20.0, 20.0, 20.0)
    assert config.data_format.name == "B"
    assert config.pooling.strategy == "auto"


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_loss_options_hold_the_weights_of_their_format(name):
    weights = {term.weight: 0.0 for term in LOSS_TERM_SPECS} | DOCUMENTED_WEIGHTS[name]
    document = LossConfig(**weights, cosine_tau=20.0, angle_tau=20.0)
    for graded in (False, name == "A"):  # whatever the labels are
        assert composed(f"loss=format_{name.lower()}").loss.for_format(name, graded=graded) == document
    own = weights | ({"ibn_w": 10.0, "reverse_w": 10.0} if name == "B" else {})
    assert LossConfig().for_format(name) == dataclasses.replace(document, **own)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"ibn_w": 30.0}, (30.0, 30.0)),  # so that a sweep over it leaves the loss symmetric
        ({"ibn_w": 0.0}, (0.0, 0.0)),
        ({"reverse_w": 0.0}, (10.0, 0.0)),
        ({"ibn_w": 20.0, "reverse_w": 5.0}, (20.0, 5.0)),
        ({"ibn_w": 1.0, "cln_w": 3.0}, (1.5, 0.0)),
        ({"ibn_w": 1.0, "cln_w": 3.0, "reverse_w": 5.0}, (1.5, 5.0)),
    ],
)
def test_triples_are_contrasted_in_both_directions_with_equal_weights(settings, weights):
    loss = LossConfig(**settings).for_format("B")
    assert (loss.ibn_w, loss.reverse_w) == weights
    assert loss.for_format("B") == loss


def test_positives_alone_are_contrasted_in_one_direction_unless_told_otherwise():
    assert LossConfig(ibn_w=30.0).for_format("C").reverse_w == 0.0
    assert LossConfig(reverse_w=5.0).for_format("C").reverse_w == 5.0


def test_nothing_to_learn_where_no_weight_is_left():
    everything = {term.weight: 0.0 for term in LOSS_TERM_SPECS}
    with pytest.raises(ConfigError) as error:
        LossConfig(**everything | {"reverse_w": None})
    assert str(error.value) == (
        "loss.cosine_w, loss.ibn_w, loss.angle_w and loss.positives_w are all 0, so there is nothing to learn: set one "
        "of them above 0."
    )


def test_the_option_for_graded_labels_holds_what_they_get():
    config = composed("loss=graded")
    assert (config.data_format.name, config.data_format.graded) == ("A", True)
    graded = LossConfig().for_format("A", graded=True)
    ranking = LossConfig(1.0, 0.0, 0.0, positives_w=0.0, reverse_w=0.0, cosine_tau=5.0, angle_tau=5.0)
    assert config.loss.for_format("A") == graded == ranking
    assert graded.is_of_graded_labels
    assert not LossConfig().for_format("A").is_of_graded_labels


def test_graded_labels_need_a_format_with_labels():
    assert error_of({"data_format.name": "B", "data_format.graded": True}) == (
        "data_format.graded=true cannot work with format B, which has no labels."
    )


def test_every_loss_term_has_its_settings():
    assert {format_name for term in LOSS_TERM_SPECS for format_name in term.formats} == set(FORMAT_NAMES)
    fields = {field.name for field in dataclasses.fields(LossConfig)}
    assert {setting for term in LOSS_TERM_SPECS for setting in (term.weight, term.multiplier) if setting} <= fields
    for attribute in ("name", "title", "weight"):
        values = [value for term in LOSS_TERM_SPECS if (value := getattr(term, attribute)) is not None]
        assert len(values) == len(set(values))


def test_null_weights_become_those_of_the_format():
    loss = LossConfig(angle_w=3).for_format("B")
    assert (loss.cosine_w, loss.ibn_w, loss.angle_w) == (0.0, 10.0, 3.0)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.epoch", "; did you mean train.epochs?"),
        ("loss.cosinew", "; did you mean loss.cosine_w?"),
        ("loss.batch_size", "; did you mean train.batch_size?"),
        ("batch_size", "; did you mean train.batch_size?"),
        ("train.lr", "; did you mean train.learning_rate?"),
        ("wd", "; did you mean train.weight_decay?"),
        ("data.train.colums", "; did you mean data.train.columns?"),
        ("zzz", "; python train.py --help lists them all."),
        ("billm.zzz", "; billm has: billm.enabled, billm.start_index, billm.last_layers, billm.model_class."),
    ],
)
def test_unknown_settings_name_the_nearest(key, hint):
    assert error_of({key: 1}) == f"There is no setting {key}{hint}"


INTEGER, NUMBER = "it must be a whole number.", "it must be a number."


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("train.epochs", "two", f"train.epochs=two cannot work: {INTEGER}"),
        ("train.batch_size", 2.5, f"train.batch_size=2.5 cannot work: {INTEGER}"),
        ("loss.ibn_w", "much", f"loss.ibn_w=much cannot work: {NUMBER}"),
        ("data.shuffle", "maybe", "data.shuffle=maybe cannot work: it must be true or false."),
        ("lora.enabled", "2.5", "lora.enabled=2.5 cannot work: it must be true or false."),
    ],
)
def test_values_of_the_wrong_type_are_refused(key, value, text):
    assert error_of({key: value}) == text


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tracking.tags", "one", ["tracking.tags=one", "a list"]),
        ("lora.target_modules", "q_proj", ["lora.target_modules=q_proj", "a list"]),
        ("data.train.columns", ["a", "b"], ["data.train.columns"]),
        ("data.train.label_map", {"yes": "much"}, ["data.train.label_map.yes=much", "a number"]),
        ("model.name_or_path", None, ["model.name_or_path=null"]),
        ("model", 3, ["model"]),
        ("model", None, ["model"]),
    ],
)
def test_values_of_another_shape_are_named_without_omegaconf_s_words(key, value, words):
    text = error_of({key: value})
    assert all(word in text for word in words)
    assert not re.search(r"ListConfig|DictConfig|AnyNode|Optional|subclass|\.\.$|\n", text)


def test_label_map_takes_numbers_as_labels():
    assert build({"data.train.label_map": {0: 1, 2: None}}).data.train.label_map == {"0": 1.0, "2": None}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"model.dtype": "float23"},
            "model.dtype=float23 is not known; did you mean float32? Choose one of: float32, bfloat16, float16, auto.",
        ),
        ({"model.padding_side": "up"}, "model.padding_side=up is not known. Choose one of: left, right."),
        (
            {"train.learning_rate": 2e-3, "train.weight_decay": 1000},
            "train.weight_decay=1000 cannot work with train.learning_rate=0.002: a step takes their product off every "
            "weight, as a share of it, so it must be below 1; a decay of 0.01 to 0.1 is usual.",
        ),
        ({"model.max_length": 1}, "model.max_length=1 cannot work: it must be at least 2."),
        (
            {"model.prompt": "Query"},
            "model.prompt='Query' has no {text}: write where the text goes, for example "
            "'model.prompt=\"Query: {text}\"', or choose one of A, B, C.",
        ),
        (
            {"pooling.strategy": "median"},
            "pooling.strategy=median is not known; did you mean mean? "
            f"Choose one of: auto, {', '.join(POOLING_NAMES)}.",
        ),
        (
            {"pooling.strategy": -1},
            "pooling.strategy=-1 cannot work: count tokens from 0; for the last token type pooling.strategy=last.",
        ),
        *(({f"loss.{w}": -1}, f"loss.{w}=-1 cannot work: it must be at least 0.") for w in ("cosine_w", "ibn_w")),
        (
            {"loss.angle_w": float("nan")},
            "loss.angle_w=nan cannot work: it must be a finite number, between 1e-38 and 3e+38 (of either sign) or 0.",
        ),
        *(
            ({f"loss.{tau}_tau": 0}, f"loss.{tau}_tau=0 cannot work: it must be above 0.")
            for tau in ("cosine", "ibn", "angle")
        ),
        (
            {"loss.cosine_w": 0, "loss.ibn_w": 0, "loss.angle_w": 0},
            "loss.cosine_w, loss.ibn_w and loss.angle_w are all 0, so there is nothing to learn: "
            "set one of them above 0.",
        ),
        (
            {"data_format.name": "C", "loss.ibn_w": 0},
            "loss.ibn_w=0 and loss.reverse_w=0 leave nothing to learn: format C has only the in-batch and reverse "
            "in-batch losses; set one of them above 0.",
        ),
        (
            {"data_format.name": "B", "loss.ibn_w": 0, "loss.angle_w": 0},
            "loss.cosine_w=0, loss.ibn_w=0, loss.angle_w=0, loss.positives_w=0 and loss.reverse_w=0 leave nothing to "
            "learn: format B has only the cosine, in-batch, angle, in-batch of positives and reverse in-batch losses; "
            "set one of them above 0.",
        ),
        (
            {"lora.r": 3},
            "lora.r=3 has no effect while lora is off: add lora=r16 or lora.enabled=true, or leave it out.",
        ),
        ({"lora.enabled": True, "lora.r": 0}, "lora.r=0 cannot work: it must be at least 1."),
        ({"lora.enabled": True, "lora.alpha": 0}, "lora.alpha=0 cannot work: it must be at least 1."),
        (
            {"lora.enabled": True, "lora.dropout": 1},
            "lora.dropout=1 cannot work: it must be at least 0 and below 1.",
        ),
        (
            {"billm.start_index": 3},
            "billm.start_index=3 has no effect while billm is off: add billm=all or billm.enabled=true, or leave it "
            "out.",
        ),
        (
            {"billm.enabled": True, "billm.start_index": 3, "billm.last_layers": 1},
            "billm.start_index=3 and billm.last_layers=1 both say where to begin: leave one out.",
        ),
        (
            {"ese.compression_size": 64},
            "ese.compression_size=64 has no effect while ese is off: add ese=on or ese.enabled=true, or leave it out.",
        ),
        (
            {"ese.enabled": True, "ese.compression_size": 65},
            "ese.compression_size=65 cannot work: the angle loss splits an embedding into a real and an imaginary "
            "half; choose an even number.",
        ),
        (
            {"teacher.enabled": True},
            "teacher.name_or_path is missing: give the teacher, for example "
            "teacher.name_or_path=WhereIsAI/UAE-Large-V1, or type teacher=self.",
        ),
        (
            {"teacher.enabled": True, "teacher.name_or_path": "self", "teacher.temperature": 0},
            "teacher.weight=1 with teacher.temperature=0 and teacher.mse_w=0 aligns nothing: set teacher.weight, and "
            "one of the others, above 0, or type teacher=none.",
        ),
        (
            {
                "teacher.enabled": True,
                "teacher.name_or_path": "self",
                "teacher.pooling": "tokens",
                "teacher.cache": True,
            },
            "teacher.cache=true cannot work with teacher.pooling=tokens, whose states would fill the disk: leave one "
            "out.",
        ),
        (
            {"ese.enabled": True, "ese.pca": False, "ese.kl_temperature": 2.0},
            "ese.kl_temperature=2 has no effect with ese.pca=false, which leaves out the divergence: leave one out.",
        ),
        (
            {"teacher.enabled": True, "teacher.name_or_path": "self", "teacher.revision": "v1"},
            "teacher.revision=v1 cannot work with teacher.name_or_path=self, which is of the student's own: leave one "
            "out.",
        ),
        ({"hub.push": True}, "hub.push=true needs hub.model_id: add for example hub.model_id=user/my-encoder."),
        (
            {"hub.model_id": "user/name"},
            "hub.model_id=user/name has no effect alone: add hub.push=true, or leave it out.",
        ),
        *(
            (
                {"hub.push": True, "hub.model_id": name},
                f"hub.model_id={name} cannot work: write user/name, at most 96 letters, digits, -, _ and ., without - "
                f"or . at an end, -- or .. inside, or .git at the end.",
            )
            for name in (
                "name",
                "a/b/c",
                "user/",
                "u ser/n",
                "user/n--n",
                "user/-n",
                "user/n.git",
                "é/n",
                "u/" + "n" * 96,
            )
        ),
        ({"data_format.name": "D"}, "data_format.name=D is not known. Choose one of: auto, A, B, C."),
        (
            {"data.duplicates": "drp"},
            "data.duplicates=drp is not known; did you mean drop? Choose one of: mask, drop, keep.",
        ),
        ({"data.stream_window": 0}, "data.stream_window=0 cannot work: it must be at least 1."),
        *(
            (
                {"data.valid.name_or_path": value},
                f"data.valid.name_or_path={value} cannot work: give a name or path, or a list of them such as "
                f"data.valid.name_or_path=[a.jsonl,b.jsonl].",
            )
            for value in (3, [], ["a", None])
        ),
        *(
            ({f"train.{name}": 0}, f"train.{name}=0 cannot work: it must be at least 1.")
            for name in ("epochs", "max_steps", "batch_size", "gradient_accumulation_steps", "logging_steps")
        ),
        ({"train.save_total_limit": 0}, "train.save_total_limit=0 cannot work: it must be at least 1."),
        *(
            ({f"train.{name}": -1}, f"train.{name}=-1 cannot work: it must be at least 0.")
            for name in ("weight_decay", "warmup_steps", "max_grad_norm", "seed", "eval_steps", "save_steps")
        ),
        ({"train.learning_rate": 0}, "train.learning_rate=0 cannot work: it must be above 0."),
        (
            {"train.scheduler": "lin"},
            "train.scheduler=lin is not known; did you mean linear? Choose one of: linear, cosine, "
            "inverse_sqrt, constant.",
        ),
        (
            {"train.mixed_precision": "bf61"},
            "train.mixed_precision=bf61 is not known; did you mean bf16? Choose one of: no, bf16, fp16.",
        ),
        (
            {"model.kernels": ["packing", "lineer"]},
            "model.kernels=lineer is not known; did you mean linear? Choose one of: packing, blocks, lora, dropout, "
            "linear, rms_norm, allocator.",
        ),
        ({"train.packing": "of"}, "train.packing=of is not known; did you mean off? Choose one of: auto, off."),
        (
            {"tracking.mode": "onlin"},
            "tracking.mode=onlin is not known; did you mean online? Choose one of: disabled, online, offline.",
        ),
        (
            {"data.train.name_or_path": None},
            "data.train.name_or_path is missing: give a file, a folder or a hub name, for example "
            "data.train.name_or_path=pairs.jsonl.",
        ),
        (
            {"data.streaming": True},
            "data.streaming=true needs train.max_steps, because a stream has no known length: add for example "
            "train.max_steps=1000.",
        ),
        *(
            (
                {f"data.{purpose}.name_or_path": "sample", f"data.{purpose}.split": "train"},
                f"data.{purpose} is the training data itself, so it would measure nothing: give other rows than those "
                f"of sample, for example data.{purpose}.split=validation.",
            )
            for purpose in ("valid", "valid_sts")
        ),
    ],
    ids=str,
)
def test_invalid_train_settings_are_refused(settings, text):
    assert error_of(settings) == text


def test_packing_off_with_and_without_quotes():
    """YAML reads off as false unless it is quoted."""
    for text in ("packing: off", 'packing: "off"', "packing: false"):
        assert build({"train": yaml.safe_load(text)}).train.packing == "off"
    assert composed("train.packing=off").train.packing == "off"


def test_kernels_are_null_or_a_list_of_their_names():
    assert build({}).model.kernels is None
    assert composed("model.kernels=[]").model.kernels == []
    assert composed("model.kernels=[packing,linear]").model.kernels == ["packing", "linear"]
    assert build({"model": yaml.safe_load("kernels: [dropout]")}).model.kernels == ["dropout"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"tasks": []},
            "tasks=[] measures nothing: give for example tasks=[stsb,sickr] or tasks=[pairs.jsonl].",
        ),
        ({"batch_size": 0}, "batch_size=0 cannot work: it must be at least 1."),
    ],
)
def test_invalid_evaluate_settings_are_refused(settings, text):
    assert error_of(settings, EvaluateConfig) == text


def test_file_that_is_its_own_validation_data_is_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    text = error_of({"data.train.name_or_path": str(file), "data.valid.name_or_path": str(file)})
    assert text.startswith("data.valid is the training data itself, so it would measure nothing")
    assert "split" not in text


def test_another_split_of_the_training_data_may_validate():
    config = build({"data.train.name_or_path": "some/set", "data.valid.name_or_path": "some/set"})
    assert config.data.valid.names() == config.data.train.names() == ["some/set"]


@pytest.mark.parametrize("source", [3, "text", [1, 2]])
def test_a_configuration_is_a_mapping(source):
    with pytest.raises(ConfigError, match=f"is a mapping of groups, not {type(source).__name__}"):
        build_config(source, TrainConfig)


def test_types_are_converted_and_a_dataclass_is_checked_again():
    config = build({"train.epochs": "3", "loss.ibn_w": 5, "pooling.strategy": 0, "data.shuffle": "false"})
    assert (config.train.epochs, config.loss.ibn_w, config.data.shuffle) == (3, 5.0, False)
    assert type(config.loss.ibn_w) is float
    assert config.pooling.strategy == "0"
    assert build_config(config, TrainConfig) == config
    config.train.epochs = 0
    with pytest.raises(ConfigError, match=r"train\.epochs=0"):
        build_config(config, TrainConfig)


@pytest.mark.parametrize("prompt", ["Query: {text}", '{{"q": "{text}"}}', "é: 'x' \\ # {text}\n", None])
def test_config_survives_saving_and_loading(tmp_path, prompt):
    config = build(
        {
            "model.prompt": prompt,
            "data.train.name_or_path": ["a.jsonl", "b.jsonl"],
            "data.train.label_map": {"entailment": 1, "neutral": None, "0": 0.5, "no": 2, "null": 3},
            "data.train.columns": {"text1": "yes", "text2": "sentence 2"},
            "lora.enabled": True,
            "lora.target_modules": ["q", "v"],
            "train.learning_rate": 2e-5,
        }
    )
    write_config(tmp_path, config)
    assert load_config(tmp_path / "config.yaml") == config


def test_config_diff_names_settings_that_affect_training():
    saved, requested = build({"train.seed": 1, "loss.ibn_w": 5, "model.prompt": "a {text}"}), TrainConfig()
    requested.train.epochs = 3
    requested.model.prompt = "b {text}"
    assert config_diff(saved, requested) == [
        "loss.ibn_w: 5.0 -> null",
        "model.prompt: a {text} -> b {text}",
        "train.epochs: 1 -> 3",
        "train.seed: 1 -> 42",
    ]
    assert config_diff(saved, saved) == []


def test_resume_takes_saved_settings_and_those_that_may_change():
    started = build({"train.max_steps": 9, "tracking.mode": "offline"})
    saved = build({"train.max_steps": 9, "tracking.mode": "offline", "train.learning_rate": 1e-3})
    requested = build(
        {"train.resume": "run", "train.logging_steps": 3, "tracking.tags": ["again"], "train.max_steps": 9}
    )
    result = resume_config(saved, requested, started)
    assert (result.train.max_steps, result.train.learning_rate, result.train.logging_steps) == (9, 1e-3, 3)
    assert (result.tracking.mode, result.tracking.tags) == ("offline", ["again"])


def test_resume_accepts_the_original_settings():
    started, saved = build({"train.token_budget": "auto"}), build({"train.token_budget": "4096"})
    requested = build({"train.resume": "run", "train.token_budget": "auto"})
    assert resume_config(saved, requested, started).train.token_budget == "4096"


def test_resume_refuses_other_settings():
    saved = build({"train.learning_rate": 1e-3})
    requested = build({"train.resume": "run", "train.epochs": 50, "train.learning_rate": 1})
    with pytest.raises(ConfigError) as caught:
        resume_config(saved, requested, TrainConfig())
    assert str(caught.value) == (
        "train.resume=run resumes the run with its own settings, and these would change it: train.epochs: 1 -> 50; "
        "train.learning_rate: 0.001 -> 1.0. Leave them out, or start a new run."
    )


MAY_CHANGE = {
    "tracking.mode": "online",
    "tracking.project": "p",
    "tracking.entity": "e",
    "tracking.name": "n",
    "tracking.tags": ["t"],
    "data.limits.text_length": 7,
    "data.limits.row_length": 7,
    "data.limits.columns": 7,
    "hub.push": True,
    "hub.model_id": "user/name",
    "hub.private": False,
    "hub.timeout": 7.5,
    "hub.license": "mit",
    "hub.language": "en",
    "hub.samples": True,
    "train.resume": "r",
    "train.output_dir": "o",
    "train.logging_steps": 3,
    "train.save_total_limit": 7,
}
OTHER = {bool: True, int: 7, float: 7.5, str: "x {text}", type(None): 1, list: ["x"], dict: {"x": "y"}}


@pytest.mark.parametrize("key", setting_types(TrainConfig))
def test_only_what_cannot_change_the_outcome_may_change_on_resume(key):
    config = TrainConfig()
    group, name = config, key.split(".")
    for part in name[:-1]:
        group = getattr(group, part)
    value = getattr(group, name[-1])
    setattr(group, name[-1], (not value) if isinstance(value, bool) else MAY_CHANGE.get(key, OTHER[type(value)]))
    assert flatten(config)[key] != flatten(TrainConfig())[key]
    may_change = key in MAY_CHANGE or key.startswith(("tracking.", "hparams."))
    assert bool(config_diff(TrainConfig(), config)) is not may_change


def test_presets_hold_no_value_that_the_schema_has_already():
    default = flatten(TrainConfig())
    for group, option in OPTIONS:
        text = (CONF / group / f"{option}.yaml").read_text()
        values = yaml.safe_load(text)
        prefix = "" if "@package _global_" in text else f"{group}."
        is_default = group != "experiment" and all(
            default.get(f"{prefix}{key}") == value for key, value in flat(values).items()
        )
        if is_default or group in ("experiment", "lora") or option == "files":
            continue
        for key, value in flat(values).items():
            if not key.endswith(".split"):  # stated, though the purpose implies it
                assert default[f"{prefix}{key}"] != value, f"{group}={option}: {key}"


def test_every_setting_is_described():
    source = "".join(file.read_text() for file in (REPO / "angle" / "config").glob("*.py"))
    for schema in SCHEMAS.values():
        for name in setting_types(schema):
            field = name.rsplit(".", 1)[-1]
            assert re.search(rf'^    {field}: .*(\n        .*)*\n    """[^"]', source, re.MULTILINE), name


@pytest.mark.parametrize("purpose", ["valid", "valid_sts", "test"])
def test_evaluating_on_a_training_file_is_refused(tmp_path, purpose):
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for file in files:
        file.write_text("{}\n")
    text = error_of({"data.train.name_or_path": [*map(str, files)], f"data.{purpose}.name_or_path": str(files[1])})
    assert text.startswith(f"data.{purpose} is the training data itself")
    assert str(files[1]) in text

"""python -m angle.soup on small runs: what it makes, what it chooses, and that others take it for a run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, made_once, sample_rows, snapshot, start_here, write_jsonl
from made_runs import train, write_sweep
from safetensors.torch import load_file, save_file

from angle import AnglE, ConfigError, DataError
from angle.cli.sweep_end import conclude
from angle.config.record import read_record, write_record
from angle.export.card_model import CardModel, SentenceTransformersSupport
from angle.export.model_card import model_card
from angle.export.trained_run import find_trained_run
from angle.modeling.embedding_config import read_embedding_config
from angle.modeling.tiny import tiny_model
from angle.reports.writing import write_report
from angle.soups.ingredients import find_ingredients
from angle.soups.soup import make_soup

pytestmark = pytest.mark.slow
#: Runs of three seeds, one that has learned too fast, and two of adapters of different ranks.
SEEDS = ("one", "two", "three")
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "enabled": True}


def make_runs(folder: Path) -> None:
    test = write_jsonl(folder / "test.jsonl", sample_rows("A", "test", 30))
    data = {"test": {"name_or_path": str(test)}}
    for seed, name in enumerate(SEEDS, 1):
        train(folder / name, groups={"data": data}, seed=seed, max_steps=12, eval_steps=4)
    train(folder / "fast", groups={"data": data}, learning_rate=0.3, max_steps=12)
    for seed, name in enumerate(("adapter", "adapter8"), 1):
        lora = LORA | ({"r": 8, "alpha": 4} if name == "adapter8" else {})
        train(folder / name, groups={"data": data, "lora": lora}, seed=seed, learning_rate=2e-2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, which are in NAME/run."""
    return made_once(tmp_path_factory, "soup_runs", make_runs)


@pytest.fixture
def copies(runs: Path, tmp_path: Path) -> Callable[..., list[Path]]:
    """Return a function that copies runs, so that they can be changed."""

    def copy(*names: str) -> list[Path]:
        for name in names:
            shutil.copytree(runs / name / "run", tmp_path / name)
        return [tmp_path / name for name in names]

    return copy


def folders(runs: Path, *names: str) -> list[Path]:
    return [runs / name / "run" for name in names]


def weights_of(run: Path, model: str = "best") -> dict[str, torch.Tensor]:
    return load_file(run / model / "model.safetensors")


def plain_mean(parts: Sequence[dict[str, torch.Tensor]], shares: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return a mean as one would write it down; of whole numbers, the first."""
    return {
        name: sum(part[name].double() * share for part, share in zip(parts, shares, strict=True)).float()
        if first.is_floating_point()
        else first
        for name, first in parts[0].items()
    }


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not found[name].equal(expected[name])] == []


def test_a_uniform_soup_is_a_run(runs: Path, tmp_path: Path) -> None:
    given = folders(runs, *SEEDS)
    soup = make_soup(given, output=tmp_path / "soup")
    folder = tmp_path / "soup"
    assert_equal(weights_of(folder, "final"), plain_mean([weights_of(run) for run in given], [1 / 3] * 3))
    record, results = read_record(folder), [read_record(run)["result"] for run in given]
    assert record["finished"]
    assert record["soup"]["method"] == "uniform"
    assert [each["folder"] for each in record["soup"]["ingredients"]] == [str(run) for run in given]
    assert [each["seed"] for each in record["soup"]["ingredients"]] == [1, 2, 3]
    assert [each["score"] for each in record["soup"]["ingredients"]] == [each["best_score"] for each in results]
    assert [each["test_score"] for each in record["soup"]["ingredients"]] == [each["test_after"] for each in results]
    result = record["result"]
    assert result["valid_before"] == results[0]["valid_before"]
    assert result["test_before"] == results[0]["test_before"]
    angle = AnglE.from_pretrained(str(folder))
    valid, test = runs / "one" / "valid.jsonl", runs / "test.jsonl"
    for file, score in ((valid, result["best_score"]), (test, result["test_after"])):
        spearman, _ = angle.evaluate(str(file))
        assert spearman == pytest.approx(score, abs=1e-12)
    assert soup.score == result["best_score"]
    page = (REPO / "docs" / "soups.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([\w.]+)`", "".join(re.findall(r"^\| (`.+?) \|", page, re.MULTILINE))))
    keys = {"tried", *record["soup"], *(f"ingredients.{key}" for key in record["soup"]["ingredients"][0])}
    assert keys - documented == set()
    assert {key for key in documented if key.startswith("ingredients.")} - keys == set()
    assert (folder / "config.yaml").read_bytes() == (given[0] / "config.yaml").read_bytes()


def test_the_model_is_the_best_one_where_there_is_one(runs: Path, copies: Callable[..., list[Path]]) -> None:
    given = copies("one", "two")
    shutil.rmtree(given[1] / "best")
    make_soup(given, output=given[0].parent / "soup")
    expected = plain_mean([weights_of(given[0]), weights_of(given[1], "final")], [0.5, 0.5])
    assert_equal(weights_of(given[0].parent / "soup", "final"), expected)


def test_weights(runs: Path, tmp_path: Path) -> None:
    given = folders(runs, *SEEDS)
    make_soup(given, weights=[2, 1, 1], output=tmp_path / "soup")
    expected = plain_mean([weights_of(run) for run in given], [0.5, 0.25, 0.25])
    assert_equal(weights_of(tmp_path / "soup", "final"), expected)


@pytest.mark.parametrize("names", [["one", "two"], ["one"]])
def test_a_share_of_the_base(runs: Path, tmp_path: Path, names: list[str]) -> None:
    given = folders(runs, *names)
    make_soup(given, base_share=0.3, output=tmp_path / "soup")
    parts = [*map(weights_of, given), tiny_model().state_dict()]
    shares = [(1 - 0.3) * (1 / len(names))] * len(names) + [0.3]
    assert_equal(weights_of(tmp_path / "soup", "final"), plain_mean(parts, shares))
    assert not (tmp_path / "soup" / "base").exists()
    assert read_record(tmp_path / "soup")["soup"]["base_share"] == 0.3


def test_no_share_of_the_base_is_none(runs: Path, tmp_path: Path) -> None:
    given = folders(runs, "one", "two")
    for share, name in ((0.0, "zero"), (1e-12, "little")):
        make_soup(given, base_share=share, output=tmp_path / name)
    assert_equal(weights_of(tmp_path / "zero", "final"), plain_mean([weights_of(run) for run in given], [0.5, 0.5]))
    little = weights_of(tmp_path / "little", "final")
    for name, weight in weights_of(tmp_path / "zero", "final").items():
        torch.testing.assert_close(little[name], weight)


def naive_greedy(runs: Sequence[Path], valid: Path, scratch: Path) -> list[Path]:
    """Return what Recipe 1 of the paper keeps, written down again; it measures by AnglE.evaluate."""
    kept: list[Path] = []
    best = -1.0
    for run in sorted(runs, key=lambda run: read_record(run)["result"]["best_score"], reverse=True):
        soup = scratch / f"tried-{run.parent.name}"
        shutil.copytree(run / "best", soup, ignore=shutil.ignore_patterns("manifest.json"))
        parts = [weights_of(each) for each in [*kept, run]]
        save_file(plain_mean(parts, [1 / len(parts)] * len(parts)), soup / "model.safetensors", {"format": "pt"})
        score, _ = AnglE.from_pretrained(str(soup)).evaluate(str(valid))
        if score >= best:
            kept, best = [*kept, run], score
    return kept


def with_noise(run: Path, folder: Path, scale: float, valid: Path) -> Path:
    """Copy a run, with noise in its weights; the one with the opposite scale has the opposite noise."""
    shutil.copytree(run, folder / "run")
    random, noisy = torch.Generator().manual_seed(0), {}
    for name, weight in weights_of(run).items():
        is_matrix = weight.is_floating_point() and weight.ndim == 2
        noise = torch.randn(weight.shape, generator=random) * weight.std() * scale if is_matrix else 0
        noisy[name] = weight + noise
    save_file(noisy, folder / "run" / "best" / "model.safetensors", {"format": "pt"})
    (folder / "run" / "best" / "manifest.json").unlink()
    record = read_record(run)
    record["result"]["best_score"], _ = AnglE.from_pretrained(str(folder / "run" / "best")).evaluate(str(valid))
    write_record(folder / "run", record)
    return folder / "run"


def test_a_greedy_soup_keeps_what_recipe_1_keeps(runs: Path, tmp_path: Path) -> None:
    """Noise that cancels makes a soup better; a run that has learned nothing, worse; a copy of it, neither."""
    three, valid = runs / "three" / "run", runs / "one" / "valid.jsonl"
    scales = {"more": 0.4, "copy": 0.4, "less": -0.4}
    noisy = [with_noise(three, tmp_path / name, scale, valid) for name, scale in scales.items()]
    given = [*folders(runs, "fast", "one"), *noisy]
    reported: list[Any] = []
    soup = make_soup(given, "greedy", output=tmp_path / "soup", report=reported.append)
    kept = naive_greedy(given, valid, tmp_path)
    assert [each.folder for each in soup.ingredients] == kept
    assert {"more", "copy", "less"} <= {each.parent.name for each in kept} <= {*scales, "one"}  # so it is a choice
    assert [tried.ingredient.folder for tried in reported if tried.is_kept] == kept
    assert reported[0].soup_score == reported[0].ingredient.score
    assert soup.score == [tried.soup_score for tried in reported if tried.is_kept][-1]
    assert_equal(
        weights_of(tmp_path / "soup", "final"),
        plain_mean([weights_of(run) for run in kept], [1 / len(kept)] * len(kept)),
    )
    tried = read_record(tmp_path / "soup")["soup"]["tried"]
    assert [each["kept"] for each in tried] == [each.is_kept for each in reported]
    assert sorted(path.name for path in (tmp_path / "soup").iterdir()) == [
        "config.yaml", "final", "predictions", "run.json",
    ]  # fmt: skip


MEASURED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a template": ("A", {"model": {"prompt": "Query: {text}"}}, {}),
    "adapters": ("A", {"lora": LORA}, {"learning_rate": 2e-2}),
    "adapters on bfloat16": ("A", {"lora": LORA, "model": {"dtype": "bfloat16"}}, {"learning_rate": 2e-2}),
    "bfloat16 products": ("A", {}, {"mixed_precision": "bf16"}),
    "rows held out": ("A", {"data": {"valid_sts": {}, "valid_split": 0.2}}, {}),
    "triples": ("B", {}, {"best_metric": "triplet_accuracy"}),
    "a loss": ("B", {}, {"best_metric": "loss"}),
    "fewer dimensions and layers": ("A", {"model": {"dimensions": 32, "layers": 1}}, {}),
}


@pytest.mark.parametrize("name", MEASURED)
def test_one_run_is_measured_as_it_has_measured_itself(runs: Path, tmp_path: Path, name: str) -> None:
    data_format, groups, settings = MEASURED[name]
    if "dtype" in groups.get("model", {}):  # which the built-in model has not
        groups = groups | {"model": groups["model"] | {"name_or_path": str(runs / "three" / "run")}}
    runs = [train(tmp_path / str(seed), data_format, groups=groups, seed=seed, **settings) for seed in (1, 2)]
    soup = make_soup(runs, "greedy", output=tmp_path / "soup")
    first = soup.tries[0]
    assert first.ingredient.score is not None
    assert first.soup_score == pytest.approx(first.ingredient.score, abs=1e-9)
    order = [tried.ingredient.score or 0.0 for tried in soup.tries]
    assert order == sorted(order, reverse=name != "a loss")


def test_adapters_are_summed(runs: Path, tmp_path: Path) -> None:
    given = folders(runs, "adapter", "adapter8")
    texts = [row["text1"] for row in sample_rows("A", "test", 20)]
    make_soup(given, weights=[3, 1], base_share=0.2, output=tmp_path / "soup")
    config = json.loads((tmp_path / "soup" / "final" / "adapter_config.json").read_text())
    assert config["r"] == 12
    merged = [AnglE.from_pretrained(str(run)).encoder for run in (*given, tmp_path / "soup")]
    states = [each.backbone.merge_and_unload().state_dict() for each in merged]
    for name, weight in tiny_model().state_dict().items():
        mixed = 0.2 * weight.double() + 0.8 * (0.75 * states[0][name].double() + 0.25 * states[1][name].double())
        torch.testing.assert_close(states[2][name].double(), mixed, rtol=0, atol=1e-6)
    assert AnglE.from_pretrained(str(tmp_path / "soup")).encode(texts).shape == (20, 128)


def test_adapters_on_a_frozen_one_keep_it(runs: Path, tmp_path: Path) -> None:
    beneath = {"model": {"adapter": str(runs / "adapter" / "run")}, "lora": LORA}
    given = [train(tmp_path / str(seed), groups=beneath, seed=seed, learning_rate=2e-2) for seed in (1, 2)]
    make_soup(given, output=tmp_path / "soup")
    names = sorted(path.name for path in (tmp_path / "soup" / "final" / "frozen-0").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    states = [
        AnglE.from_pretrained(str(run)).encoder.backbone.merge_and_unload(
            adapter_names=["frozen-0", "default"]
        ).state_dict()
        for run in (*given, tmp_path / "soup")
    ]  # fmt: skip
    for name, weight in states[2].items():
        torch.testing.assert_close(weight, (states[0][name] + states[1][name]) / 2, rtol=0, atol=1e-6)
    file = given[1] / "best" / "frozen-0" / "adapter_model.safetensors"
    other = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(other, file)
    (given[1] / "best" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="differ in the adapters that were frozen beneath theirs"):
        make_soup(given, output=tmp_path / "other")


def test_others_take_it_for_a_run(runs: Path, tmp_path: Path, unverified: None) -> None:
    soup = make_soup(folders(runs, *SEEDS), base_share=0.1, output=tmp_path / "soup")
    page = write_report([soup.folder], pictures=False).read_text()
    assert "Soup soup" in page
    assert "the mean of the weights of 3 runs" in page
    assert "the model that they started from" in page
    assert "There are no metrics yet" not in page
    assert "step None" not in page
    write_report([soup.folder, *folders(runs, "one")], tmp_path / "comparison", pictures=False)
    done = start_here("evaluate.py", "model.name_or_path=soup", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{100 * (soup.measured.test or 0):.2f}" in done.stdout
    done = start_here("convert.py", "model.name_or_path=soup", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "soup" / "sentence_transformers" / "README.md").read_text()
    assert "the mean of the weights of 3 such runs" in card
    assert "| run 3 | 3 | 0.300 |" in card
    assert "| the model that they started from | – | 0.100 | – |" in card
    assert "wortsman2022soups" in card
    assert "xiao2023cocktail" in card
    assert str(tmp_path) not in card
    assert str(runs) not in card
    done = start_here("train.py", "train.resume=soup", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "soup holds this run already, finished." in done.stdout
    again = make_soup([soup.folder, *folders(runs, "one")], output=tmp_path / "again")  # a soup is an ingredient too
    assert again.ingredients[0].score == soup.score


def test_the_card_of_a_run_says_nothing_of_soups(runs: Path) -> None:
    run = find_trained_run(runs / "one" / "run")
    settings = read_embedding_config(str(runs / "one" / "run" / "best"))
    card = model_card(CardModel("a/b", settings, "tiny", False, 128, SentenceTransformersSupport.AS_IS), run)
    assert "oup" not in card


def test_the_command(runs: Path, tmp_path: Path) -> None:
    for name in SEEDS:
        (tmp_path / name).symlink_to(runs / name / "run")
    done = start_here("-m", "angle.soup", *SEEDS, "--method", "greedy", "--output-dir", "soup", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Tried") == 3
    assert re.search(r"the\s+soup with it \d\d\.\d\d:\s+(kept|left out)", done.stdout)
    assert "Saved   soup/final" in done.stdout
    assert "python -m angle.report soup" in done.stdout
    done = start_here("-m", "angle.soup", "one", "two", folder=tmp_path)
    assert re.search(r"Saved   soups/\d{4}-\d\d-\d\d/[\d-]+/final", done.stdout)
    before = snapshot(tmp_path / "soup")
    done = start_here("-m", "angle.soup", "one", "two", "--output-dir", "soup", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: --output-dir soup holds files already, so nothing is written there; give a new folder.\n"
    )
    assert snapshot(tmp_path / "soup") == before


def test_a_crash_leaves_nothing(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("angle.soups.soup.write_run", die)
    with pytest.raises(KeyboardInterrupt):
        make_soup(folders(runs, "one", "two"), output=tmp_path / "soup")
    assert list(tmp_path.iterdir()) == []


def sweep(folder: Path, runs: Path, settings: dict[str, dict[str, str]], **changes: dict[str, Any]) -> Path:
    """Write the record of a sweep whose jobs are runs."""
    folder.mkdir()
    jobs = []
    for name, typed in settings.items():
        run = runs / name / "run"
        score = read_record(run)["result"]["best_score"]
        jobs.append({
            "settings": typed, "folder": str(run), "status": "finished", "error": None, "metric": "spearman",
            "score": score, "seconds": 1.0, "result": {},
        } | changes.get(name, {}))  # fmt: skip
    write_sweep(folder, jobs)
    return folder


BY_SEED = {name: {"train.seed": str(seed)} for seed, name in enumerate(SEEDS, 1)}


def test_a_sweep_over_seeds(runs: Path, tmp_path: Path) -> None:
    failed = {"status": "failed", "error": "no memory", "score": None}
    folder = sweep(tmp_path / "sweep", runs, BY_SEED, two=failed)
    found = find_ingredients([folder], "uniform", 2)
    assert [each.folder for each in found] == folders(runs, "one", "three")
    commands = " ".join(list(conclude(folder, "written"))[-1].replace("\\", "").split())
    assert f"python -m angle.soup {folder}" in commands


def test_of_a_sweep_over_settings_a_uniform_soup_takes_the_seeds_of_the_best(runs: Path, tmp_path: Path) -> None:
    settings = {name: {"loss.ibn_w": "1" if name == "three" else "2", **typed} for name, typed in BY_SEED.items()}
    folder = sweep(tmp_path / "sweep", runs, settings, three={"score": 0.01})
    assert [each.folder for each in find_ingredients([folder], "uniform", 2)] == folders(runs, "one", "two")
    assert [each.folder for each in find_ingredients([folder], "greedy", 2)] == folders(runs, *SEEDS)
    assert "angle.soup" not in list(conclude(folder, "written"))[-1]
    folder = sweep(tmp_path / "other", runs, settings, three={"score": 0.99})
    said = "loss.ibn_w=1, the best setting of .*/other, has 1 finished run, and a soup needs two: .*--method greedy"
    with pytest.raises(ConfigError, match=said):
        find_ingredients([folder], "uniform", 2)
    unmeasured: dict[str, dict[str, Any]] = {name: {"score": None} for name in SEEDS}
    folder = sweep(tmp_path / "unmeasured", runs, settings, **unmeasured)
    with pytest.raises(ConfigError, match=r"differ in loss\.ibn_w and were not measured"):
        find_ingredients([folder], "uniform", 2)


def test_runs_with_other_validation_rows(runs: Path, copies: Callable[..., list[Path]], tmp_path: Path) -> None:
    given = copies("one", "two")
    record = read_record(given[1])
    record["data"]["valid_sts"] = "0123456789abcdef"
    write_record(given[1], record)
    with pytest.raises(ConfigError, match=r"differ in the rows of data\.valid_sts \(by their hash\): \w{12} and 0123"):
        make_soup(given, "greedy", output=tmp_path / "soup")
    soup = make_soup(given, output=tmp_path / "soup")
    assert soup.score is None
    assert soup.measured.test is not None
    assert "different validation rows" in soup.notes[0]
    record["data"] = read_record(given[0])["data"]
    record["result"]["best_metric"] = "loss"
    write_record(given[1], record)
    with pytest.raises(ConfigError, match=r"differ in train\.best_metric: spearman and loss"):
        make_soup(given, "greedy", output=tmp_path / "other")


def test_rows_that_have_changed_since(copies: Callable[..., list[Path]], runs: Path, tmp_path: Path) -> None:
    given = copies("one", "two")
    for run in given:
        record = read_record(run)
        record["data"]["test"] = "0123456789abcdef"
        write_record(run, record)
    with pytest.raises(DataError, match=r"data\.test of .* has other rows now than when the run was measured"):
        make_soup(given, "greedy", output=tmp_path / "soup")
    soup = make_soup(given, output=tmp_path / "soup")
    assert soup.measured.values == {}
    assert soup.measured.test is None
    assert "the soup was not measured: data.test" in soup.notes[0]
    assert read_record(tmp_path / "soup")["result"]["valid_after"] == {}


def edit(run: Path, file: str, **changes: Any) -> None:
    """Change entries of a JSON file of a run's model, as if it had been saved so."""
    path = run / "best" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (run / "best" / "manifest.json").unlink(missing_ok=True)


DIFFERENCES: dict[str, tuple[str, dict[str, Any], str]] = {
    "architecture": ("config.json", {"model_type": "roberta"}, "model_type of config.json: 'bert' and 'roberta'"),
    "size": ("config.json", {"hidden_size": 64}, "hidden_size of config.json: 128 and 64"),
    "tokenizer": ("tokenizer.json", {"normalizer": None}, "normalizer of tokenizer.json: .* and None"),
    "pooling": ("angle_config.json", {"pooling": "cls"}, "pooling of how texts become embeddings: 'avg' and 'cls'"),
    "prompt": ("angle_config.json", {"prompt": "Q: {text}"}, "prompt of .*: None and 'Q: {text}'"),
    "prompts": ("angle_config.json", {"prompts": {"query": "Q: "}}, "prompts of .*: None and {'query': 'Q: '}"),
    "direction": ("angle_config.json", {"bidirectional_from": 1}, "bidirectional_from of .*: None and 1"),
    "length": ("angle_config.json", {"max_length": 32}, "max_length of .*: 64 and 32"),
    "normalize": ("angle_config.json", {"normalize": True}, "normalize of .*: None and True"),
    "similarity": ("angle_config.json", {"similarity": "dot"}, "similarity of .*: None and 'dot'"),
    "dimensions": ("angle_config.json", {"dimensions": 32}, "dimensions of .*: None and 32"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_runs_that_differ_are_refused(copies: Callable[..., list[Path]], tmp_path: Path, name: str) -> None:
    file, changes, said = DIFFERENCES[name]
    given = copies("one", "two")
    edit(given[1], file, **changes)
    with pytest.raises(ConfigError, match=f"/one and .*/two differ in {said}. A soup needs the same"):
        make_soup(given, output=tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_what_the_writer_or_the_last_call_left_makes_no_difference(
    copies: Callable[..., list[Path]], tmp_path: Path
) -> None:
    given = copies("one", "two")
    edit(given[1], "config.json", transformers_version="1.0.0")
    edit(given[1], "tokenizer.json", truncation={"max_length": 3})
    make_soup(given, output=tmp_path / "soup")


def test_adapters_of_other_weights_are_refused(copies: Callable[..., list[Path]], tmp_path: Path) -> None:
    given = copies("adapter", "adapter8", "one")
    with pytest.raises(ConfigError, match="differ in what they trained: an adapter and all weights"):
        make_soup([given[0], given[2]], output=tmp_path / "soup")
    record = read_record(given[1])
    write_record(given[1], record | {"weights": {"model": {"base": "0123456789abcdef"}}})
    said = r"differ in the weights that they started from \(adapters are updates of one model\): none and base 0123"
    with pytest.raises(ConfigError, match=said):
        make_soup(given[:2], output=tmp_path / "soup")


def test_a_base_that_has_changed_is_refused(runs: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(runs / "three" / "run" / "best", base)
    start = {"model": {"name_or_path": str(base)}}
    given = [train(tmp_path / str(seed), groups=start, seed=seed) for seed in (1, 2)]
    soup = make_soup(given, base_share=0.5, output=tmp_path / "soup")
    parts = [*map(weights_of, given), load_file(base / "model.safetensors")]
    assert_equal(weights_of(soup.folder, "final"), plain_mean(parts, [0.25, 0.25, 0.5]))
    other = {name: weight + 1 if weight.is_floating_point() else weight for name, weight in parts[2].items()}
    save_file(other, base / "model.safetensors", {"format": "pt"})
    (base / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"the weights of .*/base have changed since .*/1/run started from them"):
        make_soup(given, base_share=0.5, output=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"differ in the weights that they started from \(--base-share mixes it in\)"):
        make_soup([given[0], runs / "one" / "run"], base_share=0.5, output=tmp_path / "other")
    make_soup([given[0], runs / "one" / "run"], output=tmp_path / "other")  # the mean of the runs needs no base


def test_weights_that_the_base_lacks_are_those_that_the_run_began_with(runs: Path, tmp_path: Path) -> None:
    """A pooler, which is not in every file, begins at random, by the run's seed, and is not trained."""
    base = tmp_path / "base"
    shutil.copytree(runs / "three" / "run" / "best", base, ignore=shutil.ignore_patterns("manifest.json"))
    kept = {name: weight for name, weight in load_file(base / "model.safetensors").items() if "pooler" not in name}
    save_file(kept, base / "model.safetensors", {"format": "pt"})
    run = train(tmp_path / "run", groups={"model": {"name_or_path": str(base)}}, seed=5)
    torch.manual_seed(6)
    make_soup([run], base_share=0.5, output=tmp_path / "soup")
    pooler = "pooler.dense.weight"
    assert weights_of(tmp_path / "soup", "final")[pooler].equal(weights_of(run)[pooler])


def test_folders_that_make_no_soup(runs: Path, copies: Callable[..., list[Path]], tmp_path: Path) -> None:
    one, two = copies("one", "two")
    a_sweep = sweep(tmp_path / "sweep", runs, BY_SEED)
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    unfinished = copies("three")[0]
    write_record(unfinished, read_record(unfinished) | {"finished": False})
    damaged = copies("fast")[0]
    (damaged / "best" / "config.json").write_text("{}")
    refused: list[tuple[list[Path], str]] = [
        ([one], "one alone makes no soup: give two runs or more"),
        ([one, two, tmp_path / "one" / ".." / "one"], "is the same run as"),
        ([one, nothing], "nothing is no run's folder: it has no run.json"),
        ([one, a_sweep], "sweep is a sweep's folder beside others: give one sweep alone, or runs"),
        ([one, tmp_path / "missing"], "missing is no folder"),
        ([one, unfinished], "three is a run that has not finished: finish it with python train.py train.resume="),
        ([one, damaged], r"is damaged \(config.json is not as it was saved\)"),
    ]
    for given, said in refused:
        with pytest.raises(ConfigError, match=said):
            make_soup(given, output=tmp_path / "soup")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"base_share": 1.0}, "--base-share 1 cannot work: give a share of 0 or more and below 1"),
        ({"base_share": -0.1}, "--base-share -0.1 cannot work"),
        ({"base_share": float("nan")}, "--base-share nan cannot work"),
        ({"weights": [1, 2, 3]}, "--weights has 3 numbers for 2 folders"),
        ({"weights": [1, 0]}, "--weights 0 cannot work: give numbers above 0"),
        ({"weights": [1, float("inf")]}, "--weights inf cannot work"),
        ({"weights": [1, 2], "method": "greedy"}, "--weights cannot work with --method greedy"),
    ],
)
def test_arguments_that_cannot_work(runs: Path, tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_soup(folders(runs, "one", "two"), output=tmp_path / "soup", **arguments)


def test_runs_that_nothing_measured(tmp_path: Path) -> None:
    given = [train(tmp_path / str(seed), "C", seed=seed, best_metric=None) for seed in (1, 2)]
    with pytest.raises(ConfigError, match="1/run was not measured on validation rows, by which a greedy soup chooses"):
        make_soup(given, "greedy", output=tmp_path / "soup")
    soup = make_soup(given, output=tmp_path / "soup")
    assert soup.score is None
    assert soup.measured.values["loss"] > 0
    write_report([soup.folder], pictures=False)

"""python -m angle.report: what it writes, what it says of folders that are not as they should be, what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from made_runs import HOSTILE, make_sweep, read_jobs, train, write_sweep

from angle import ConfigError
from angle.evaluation.predictions import AFTER, BEFORE, Predictions
from angle.reports.writing import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose validation texts would do harm in a page that trusts them."""
    rows = [{"text1": f"the fox {n}", "text2": f"the moon {n * n}", "label": n % 5} for n in range(20)]
    folder = train(tmp_path_factory.mktemp("run"), valid_rows=rows)
    for name in (BEFORE, AFTER):
        saved = Predictions.load(folder, name)
        assert saved is not None
        dataclasses.replace(saved, texts=[f"{HOSTILE} {n}" for n in range(len(saved.texts))]).save(folder, name)
    return folder


def specs(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    charts: dict[str, object] = json.loads(found[1])
    return charts


def text(page: str) -> str:
    """Return a page without its scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def test_a_runs_page_and_files(run: Path) -> None:
    path = write_report([run])
    page = path.read_text()
    assert path == run / "report" / "report.html"
    assert len(page) < 3_000_000
    charts = specs(page)
    assert {
        "validation",
        "loss",
        "loss-ibn",
        "memory_gib",
        "similarities-before",
        "similarities-after",
        "calibration",
        "map-after",
    } <= charts.keys()
    for name in charts:
        assert (run / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        rows = list(csv.DictReader((run / "report" / f"{name}.csv").open()))
        assert rows
    validation = list(csv.DictReader((run / "report" / "validation.csv").open()))
    record = json.loads((run / "run.json").read_text())["result"]
    best = [row for row in validation if row["used"] == "True"]
    assert [int(row["step"]) for row in best] == [record["best_step"]]
    assert float(best[0]["value"]) == pytest.approx(100 * record["best_score"])
    for title in (
        "Outcome",
        "Curves",
        "Similarities",
        "Nearest neighbours",
        "Worst pairs",
        "Settings",
        "Use the model",
    ):
        assert f">{title}</h2>" in page


def test_texts_of_others_do_no_harm_in_a_page(run: Path) -> None:
    page = write_report([run], pictures=False).read_text()
    assert "<img" not in text(page)
    assert all("<" not in found for found in re.findall(r'json" id="\w+">(.*?)</script>', page, re.DOTALL))
    assert "{{ 7 * 7 }}" in text(page)  # and not 49
    assert "&lt;/script&gt;&lt;img src=x" in text(page)
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text(page))


@pytest.mark.parametrize("data_format", "BC")
def test_rows_without_labels(tmp_path: Path, data_format: str) -> None:
    page = write_report([train(tmp_path, data_format)], pictures=False).read_text()
    assert {"similarities-after", "map-before"} <= specs(page).keys()
    assert "calibration" not in specs(page)
    assert {"B": "Triples whose negative is nearest", "C": "Positives that are furthest apart"}[data_format] in page


def test_a_run_that_nothing_measures_and_one_that_is_not_finished(tmp_path: Path, run: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    record = json.loads((unfinished / "run.json").read_text())
    del record["result"], record["checksum"]
    (unfinished / "run.json").write_text(json.dumps(record | {"finished": False}))
    shutil.rmtree(unfinished / "predictions")
    page = text(write_report([unfinished], pictures=False).read_text())
    assert "This run has not finished: it has reached step 6." in page
    assert "there is nothing of single texts" in page
    assert ">Use the model</h2>" not in page


def test_what_is_damaged_is_left_out_and_said(tmp_path: Path, run: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged, ignore=shutil.ignore_patterns("report"))
    (damaged / "config.yaml").write_text("model: 3")
    (damaged / "metrics.jsonl").write_text('{"step": 2, "loss": 3.0}\n{"step": 4, "lo')
    file = damaged / "predictions" / "after.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    page = text(write_report([damaged], pictures=False).read_text())
    assert "config.yaml is not as it was when the run began" in page
    assert "after.safetensors is damaged" in page


def test_several_runs(tmp_path: Path) -> None:
    runs = [train(tmp_path / name, learning_rate=rate) for name, rate in (("a", 0.001), ("b", 0.02))]
    page = write_report(runs, tmp_path / "comparison").read_text()
    words = text(page)
    assert re.search(r"Spearman of run less that of run is|may be chance: the difference is", words)
    assert "<td>train.learning_rate</td>" in re.sub(r"<td[^>]*>", "<td>", words)
    assert "Pairs whose place in the order of similarities differs most" in words
    assert {"valid-spearman", "loss"} <= specs(page).keys()


def test_runs_measured_on_different_rows_are_not_compared(tmp_path: Path, run: Path) -> None:
    other = train(tmp_path)
    page = text(write_report([run, other], tmp_path / "comparison", pictures=False).read_text())
    assert "is not compared with run: they are measured on different validation rows (20 and 30 of them)." in page
    assert "Pairs whose place" not in page


def test_a_sweeps_page(tmp_path: Path) -> None:
    axes = {"loss.ibn_w": ["10", "20", "30"], "loss.angle_tau": ["1", "20"]}
    sweep = make_sweep(tmp_path, axes, {("loss.ibn_w", "20"): 0.05})
    page = write_report([sweep]).read_text()
    assert specs(page).keys() == {"heat-map", "importance", "seeds", "learning-curves"}
    cells = list(csv.DictReader((sweep / "report" / "heat-map.csv").open()))
    jobs = read_jobs(sweep)
    for cell in cells:
        scores = [
            job["score"] for job in jobs
            if (job["settings"]["loss.ibn_w"], job["settings"]["loss.angle_tau"]) == (cell["x"], cell["y"])
        ]  # fmt: skip
        assert float(cell["score"]) == pytest.approx(100 * sum(scores) / 3, abs=1e-3)
    assert len(cells) == 6
    assert "loss.ibn_w matters: 20 is better than" in page


@pytest.mark.parametrize(
    ("axes", "figure"),
    [
        ({"loss.ibn_w": ["5", "10", "20"]}, "effect"),
        ({"pooling": ["avg", "cls"]}, "effect"),
        ({"loss.ibn_w": ["5", "10"], "loss.angle_w": ["0", "1"], "pooling": ["avg", "cls"]}, "parallel"),
    ],
)
def test_figures_follow_the_number_of_settings(tmp_path: Path, axes: dict[str, list[str]], figure: str) -> None:
    assert figure in specs(write_report([make_sweep(tmp_path, axes, {})]).read_text())


def test_jobs_that_have_no_score_are_counted(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"loss.ibn_w": ["10", "20", "30", "40"]}, {}, seeds=1)
    jobs = read_jobs(sweep)
    for job, status in zip(jobs, ("running", "pruned", "failed"), strict=False):
        error = "out of memory" if status == "failed" else None
        job |= {"score": None, "metric": None, "status": status, "error": error}
    write_sweep(sweep, jobs)
    page = text(write_report([sweep], pictures=False).read_text())
    assert "4 jobs of 4 settings, 1 failed, 1 pruned, 1 running" in page
    assert "1 of the jobs have not ended: they are running, or were killed." in page
    assert all(f"<td>{status}</td>" in page for status in ("running", "pruned", "failed"))


def test_a_sweep_whose_jobs_all_failed(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"loss.ibn_w": ["10", "20"]}, {}, seeds=1)
    failed = {"score": None, "metric": None, "result": None, "status": "failed"}
    write_sweep(sweep, [job | failed | {"error": f"the reason of {n}"} for n, job in enumerate(read_jobs(sweep))])
    page = text(write_report([sweep], pictures=False).read_text())
    assert "All jobs failed" in page
    assert all(f"the reason of {n}" in page for n in range(2))


def test_what_is_refused(tmp_path: Path, run: Path) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    foreign.mkdir()
    (foreign / "report.html").write_text("<h1>mine</h1>")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sweep.json").write_text('{"jobs": [{}]}')
    for folders, output, problem in [
        ([tmp_path / "missing"], None, "missing is no folder"),
        ([empty], None, "is neither a run's folder"),
        ([run, run], None, "The same run is given twice"),
        ([run, empty], None, "empty is no run's folder"),
        ([run], foreign, "foreign holds something else than a report"),
        ([run], foreign / "report.html", "report.html holds something else"),
        ([broken], None, "sweep.json is not as a sweep writes it"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(problem)):
            write_report(folders, output)
    assert (foreign / "report.html").read_text() == "<h1>mine</h1>"

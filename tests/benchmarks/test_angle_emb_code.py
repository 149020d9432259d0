"""The table of angle_emb's code: what is found in a release, and how an outcome is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPO

from benchmarks.angle_emb_code import NOT_WHOLE, OTHERS, SCORE, Piece, command, pieces, run, uses


def test_blocks_tests_and_scripts_are_found(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_a():\n    import angle_emb\n")
    (tmp_path / "README.md").write_text(
        "a\n```python\nx = 1\n```\n```text\nno\n```\n```bash\nangle-trainer --help\n```\n"
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "use.rst").write_text(
        "Use\n===\n\n.. code-block:: python\n\n    if x:\n\n        y = 1\n\nand\n\n.. code-block:: text\n\n    no\n"
    )
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "a.sh").write_text("angle-trainer --help\n")
    found = [(piece.place, piece.language) for piece in pieces(tmp_path)]
    assert found == [
        ("README.md, block 1", "python"),
        ("README.md, block 2", "bash"),
        ("use.rst, block 1", "python"),
        ("tests/test_a.py", "python"),
        ("examples/a.sh", "sh"),
    ]
    assert list(pieces(tmp_path))[2].text.strip() == "if x:\n\n    y = 1"
    assert uses("angle.encode(['a'], prompt='x')\nAnglE.from_pretrained('m')\nprint(1)") == (
        "`encode(prompt)`, `from_pretrained()`"
    )


def test_commands_are_those_of_the_trainer() -> None:
    launched = (
        "X=1 accelerate launch --num_processes 4 \\\n -m angle_emb.angle_trainer --model_name_or_path a/b --epochs 1"
    )
    assert command(launched) == ["--model_name_or_path", "a/b", "--epochs", "1"]
    assert command("angle-trainer --model_name_or_path a \\\n ...") is None
    assert command("angle-trainer --help") == ["--help"]
    assert command("angle-trainer --model_name_or_path a --push_to_hub 1 --hub_model_id b/c") == [
        "--model_name_or_path", "a", "--hub_model_id", "b/c"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "text", "outcome"),
    [
        ("python", "from angle_emb import AnglE\nAnglE.from_pretrained('some/model').encode('a')", "runs"),
        ("python", "def test_x():\n    import angle_emb\n    assert 0 > 1\n", SCORE),
        ("python", "import json", OTHERS),
        ("bash", "angle-trainer ...", NOT_WHOLE),
        ("bash", "angle-trainer --model_name_or_path a/b --train_name_or_path c/d_format_b --save_dir e --cln_w 1",
         "runs"),
        ("python", "from angle_emb import AnglE\nAnglE.from_pretrained('some/model', pooling_strategy='all')",
         "`angle.errors.ConfigError: pooling.strategy=all is not known. Choose one of: auto, cls, avg, mean, max, "
         "last, cls_avg, cls_max.`"),
    ],
)  # fmt: skip
def test_an_outcome_is_what_happened(language: str, text: str, outcome: str) -> None:
    assert run(Piece("x", language, text), REPO) == outcome

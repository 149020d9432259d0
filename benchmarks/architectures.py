"""Puts every text architecture of transformers through a table of checks: python -m benchmarks.architectures [NAME ...]

A small random model of each architecture is built on the CPU, as its configuration class makes it, and is put through
what a user would do with it. Every check ends as right, as refused in one sentence, or as a fault. The results are kept
in a file (--results), so that a few architectures can be run at a time; --table writes docs/architectures.md from it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import re
import shutil
import subprocess
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from angle.config import LoraConfig, ModelConfig, PoolingConfig, TrainConfig
from angle.config.build import build_config
from angle.errors import ConfigError, DataError
from angle.export.sentence_transformers import save_sentence_transformers
from angle.modeling.bidirectional import check_bidirectional_layers
from angle.modeling.encoder import Encoder
from angle.modeling.probing import call_options, differ
from angle.structures import Tokens
from angle.training.loop import fit
from angle.training.run_folder import RunFolder
from benchmarks.small_models import build, text_architectures

DOCS = Path(__file__).resolve().parent.parent / "docs"
SENTENCE = "a dog chases the cat and two birds watch an old man who eats red apples in the garden by the river"
WORDS = SENTENCE.split()
#: Texts of many lengths, some of them equal.
TEXTS = [" ".join((WORDS * 6)[start : start + count]) for start, count in enumerate([1, 3, 3, 12, 70, 7, 2, 24])]
MAX_LENGTH = 80
#: Largest distance of two embeddings that should be the same, relative to their length; of two gradients.
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
#: The same of embeddings before and after an adapter is merged, which rounds every weight anew: of the 1e-5 that this
#: makes in a mixture of experts (qwen3_5_moe_text), nothing is left in float64.
MERGE_TOLERANCE = 1e-4
#: A run's settings, with which it is resumed after its first step.
RUN = {"max_steps": 2, "save_steps": 1, "batch_size": 4, "learning_rate": 1e-3}
CHECKS = ("loads", "alone", "truth", "direction", "gradients", "resumed", "saved", "layers", "lora", "converted")
#: Those that compare numbers.
MEASURED = ("alone", "truth", "gradients", "saved", "layers", "lora", "converted")
TITLES = {
    "loads": "loads",
    "alone": "alone equals among others",
    "truth": "equals transformers",
    "direction": "direction as measured",
    "gradients": "gradients equal transformers'",
    "resumed": "resumed equals straight",
    "saved": "saved and loaded",
    "layers": "cut, saved and loaded",
    "lora": "LoRA, saved and loaded",
    "converted": "converted folder agrees",
}


def distance(actual: Tensor, expected: Tensor) -> float:
    """Return the largest relative distance of two embeddings of a text."""
    return float(((actual - expected).norm(dim=1) / expected.norm(dim=1)).max())


def model_config(folder: Path, **settings: Any) -> ModelConfig:
    """Return the settings of a model with texts that are long, but not too long for its positions."""
    return ModelConfig(str(folder), max_length=MAX_LENGTH, **settings)


class Checks:
    """The checks of one model; each returns nothing, or raises an error."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        """Check the model in a folder."""
        self.folder, self.scratch = folder, scratch
        self.encoder: Encoder | None = None
        self.expected: Tensor | None = None
        self.stock: Any = None
        self.largest = 0.0

    def loads(self) -> None:
        """Load the model, and embed every text alone."""
        self.encoder = Encoder.load(model_config(self.folder), PoolingConfig("avg")).eval()
        if self.encoder.is_llm:
            check_bidirectional_layers(self.encoder.backbone, self.encoder.bidirectional_from)
        self.expected = torch.cat([self.encoder.encode([text]) for text in TEXTS])

    def expect_same(self, actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
        """Raise AssertionError if rows differ, and remember by how much they do."""
        found = distance(actual.float(), expected.float())
        self.largest = max(self.largest, found)
        assert found <= tolerance, f"off by {found:.1e}"

    def alone(self) -> None:
        """Compare with the text among others, in two orders."""
        self.expect_same(self.encoder.encode(TEXTS), self.expected)
        self.expect_same(self.encoder.encode(TEXTS[::-1], batch_size=4).flip(0), self.expected)
        tokens: Tokens = self.encoder.tokenizer(TEXTS)
        ids = torch.from_numpy(tokens.ids).long()
        self.expect_same(self.encoder(ids, tokens.lengths).detach(), self.expected)

    def _stock(self, ids: Tensor) -> Tensor:
        """Return the states (L, D) of tokens (L,) by transformers' own model."""
        if self.stock is None:
            from transformers import AutoModel

            self.stock = AutoModel.from_pretrained(self.folder).eval()
        return self.stock(input_ids=ids[None], **call_options(self.stock)).last_hidden_state[0]

    def _text_ids(self) -> list[Tensor]:
        return [torch.from_numpy(self.encoder.tokenizer([text]).ids).long() for text in TEXTS]

    def truth(self) -> None:
        """Compare with transformers' own model, one text at a time."""
        with torch.no_grad():
            self.expect_same(self.expected, torch.stack([self._stock(ids).mean(0) for ids in self._text_ids()]))

    def direction(self) -> None:
        """Change the last token of a text, and see whether the states before it change in transformers' own model."""
        ids = max(self._text_ids(), key=len)
        with torch.no_grad():
            states, others = self._stock(ids), self._stock(torch.cat([ids[:-1], ids[1:2]]))
        is_causal = not differ(states[:-1], others[:-1])
        assert is_causal == self.encoder.is_llm, f"causal: {is_causal}"

    def gradients(self) -> None:
        """Compare the gradients of a step with those of transformers' own model, one text at a time."""
        encoder, tokens = self.encoder, self.encoder.tokenizer(TEXTS)
        encoder(torch.from_numpy(tokens.ids).long(), tokens.lengths).sin().sum().backward()
        for ids in self._text_ids():
            self._stock(ids).mean(0).sin().sum().backward()
        expected = dict(self.stock.named_parameters())
        found = {name: parameter.grad for name, parameter in encoder.backbone.named_parameters()}
        without = [name for name, weight in expected.items() if weight.grad is not None and found[name] is None]
        assert not without, f"{without[0]} has no gradient"
        pairs = [(found[name], weight.grad) for name, weight in expected.items() if weight.grad is not None]
        assert len(pairs) > 5, "hardly any weight has a gradient"
        found_all, expected_all = (
            torch.cat([part.flatten() for part in side])[None] for side in zip(*pairs, strict=True)
        )
        assert found_all.isfinite().all(), "a gradient is not finite"
        self.expect_same(found_all, expected_all, GRADIENT_TOLERANCE)

    def resumed(self) -> None:
        """Train two steps, and the second one again from its checkpoint: the weights are the same to the bit."""
        rows, run = self.scratch / "rows.jsonl", self.scratch / "run"
        texts = [text for text in TEXTS if len(text) < 100]
        pairs = [{"text1": text, "text2": other, "label": 1} for text, other in product(texts, texts[:2])]
        rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs[:8]), encoding="utf-8")
        model = {"name_or_path": str(self.folder), "max_length": MAX_LENGTH}
        data = {"train": {"name_or_path": str(rows)}}
        settings = {"model": model, "data": data, "train": RUN | {"output_dir": str(run)}}
        weights = []
        for _ in range(2):
            with contextlib.redirect_stdout(io.StringIO()):
                fit(build_config(settings, TrainConfig))
            weights.append(load_file(run / "final" / "model.safetensors"))
            RunFolder(run).update(finished=False)
            shutil.rmtree(run / "checkpoints" / "step-00000002")
        assert weights[0].keys() == weights[1].keys()
        changed = [name for name, weight in weights[0].items() if not torch.equal(weight, weights[1][name])]
        assert not changed, f"{changed[0]} differs"

    def _reloaded(self, encoder: Encoder, name: str) -> None:
        expected = encoder.eval().encode(TEXTS)
        encoder.save(self.scratch / name)
        self.expect_same(Encoder.load(str(self.scratch / name)).eval().encode(TEXTS), expected)

    def saved(self) -> None:
        """Save the whole model and load it."""
        self._reloaded(self.encoder, "saved")

    def layers(self) -> None:
        """Cut the model after half of its layers, save it and load it."""
        self._reloaded(Encoder.load(model_config(self.folder, layers=2), PoolingConfig("avg")), "layers")

    def lora(self) -> None:
        """Train an adapter for two steps, save it, and load it, beside the weights and merged into them."""
        lora = LoraConfig(enabled=True, r=2, alpha=4, dropout=0.0)
        encoder = Encoder.load(model_config(self.folder), PoolingConfig("avg"), lora).train()
        tokens = encoder.tokenizer(TEXTS)
        for _ in range(2):  # in the first step, one half of an adapter has no gradient yet
            encoder(torch.from_numpy(tokens.ids).long(), tokens.lengths).sin().sum().backward()
            with torch.no_grad():
                for parameter in encoder.parameters():
                    if parameter.requires_grad:
                        assert parameter.grad is not None, "an adapter has no gradient"
                        parameter -= 0.1 * parameter.grad / parameter.grad.norm().clamp_min(1e-6)
                        parameter.grad = None
        expected = encoder.eval().encode(TEXTS)
        encoder.save(self.scratch / "lora")
        for merge, tolerance in ((False, TOLERANCE), (True, MERGE_TOLERANCE)):
            loaded = Encoder.load(str(self.scratch / "lora"), merge=merge).eval()
            self.expect_same(loaded.encode(TEXTS), expected, tolerance)

    def converted(self) -> None:
        """Write a folder for sentence-transformers, and compare with what that makes of it."""
        from sentence_transformers import SentenceTransformer

        save_sentence_transformers(self.encoder, self.scratch / "converted")
        theirs = SentenceTransformer(str(self.scratch / "converted"), device="cpu")
        self.expect_same(theirs.encode(TEXTS, convert_to_tensor=True, batch_size=4), self.expected)


def outcome(check: Callable[[], None]) -> str:
    """Return "right", "refused: SENTENCE" or "fault: WHAT"."""
    try:
        check()
    except (ConfigError, DataError) as error:
        return f"refused: {error}"
    except AssertionError as error:
        return f"fault: {error or traceback.format_exc(limit=-1).splitlines()[-2]}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = (str(error).strip().splitlines() or [""])[0]
        return f"fault: {type(error).__name__}: {message[:160]} ({Path(where.filename).name}:{where.lineno})"
    return "right"


def commit() -> str:
    """Return the commit that is checked out."""
    words = ["git", "-C", str(DOCS), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def check(name: str) -> dict[str, str]:
    """Return what became of an architecture: the outcome of every check, and how its texts run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        started = time.perf_counter()
        try:
            build(name, folder)
        except Exception as error:  # whatever a small configuration lacks
            reason = (str(error).strip().splitlines() or [""])[0]
            return {"name": name, "commit": commit(), "built": f"{type(error).__name__}: {reason[:160]}"}
        checks = Checks(folder, Path(scratch))
        result = {"name": name, "commit": commit(), "built": "right", "loads": outcome(checks.loads)}
        if checks.encoder is not None:
            result["layout"] = str(checks.encoder.layout)
            result["attends"] = "causal" if checks.encoder.is_llm else "bidirectional"
        if checks.expected is not None:
            for kind in CHECKS[1:]:
                checks.largest = 0.0
                result[kind] = outcome(getattr(checks, kind))
                result[f"{kind} off by"] = f"{checks.largest:.1e}"
        return result | {"seconds": f"{time.perf_counter() - started:.1f}"}


def table(results: list[dict[str, str]]) -> str:
    """Return docs/architectures.md."""
    built = [result for result in results if result["built"] == "right"]
    lines = [
        "# Architectures",
        "",
        "Every text architecture of transformers (those with a masked or a causal language model) that can be built "
        "small on a CPU from its configuration class, put through the same checks: `python -m "
        "benchmarks.architectures`. Where padding or other texts would change an embedding, texts run one length at a "
        "time; what cannot work is refused in one sentence before training.",
        "",
        f"Embeddings that should be the same differ by at most {TOLERANCE:.0e} of their length (their cosine, by half "
        f"the square of that), those of a merged adapter and gradients by {GRADIENT_TOLERANCE:.0e}, in float32; a "
        f"resumed run by nothing.",
        "",
        f"Made at commit {', '.join(sorted({result['commit'] for result in results}))} with transformers "
        f"{version('transformers')}, torch {version('torch').split('+')[0]}, peft "
        f"{version('peft')} and sentence-transformers {version('sentence-transformers')}. {len(results)} "
        f"architectures, {len(built)} of them built small; others need more than a configuration class "
        f"to be small.",
        "",
        "| check | right | refused | fault | largest distance |",
        "|---|---|---|---|---|",
    ]
    for kind in CHECKS:
        counts = Counter(result[kind].split(":")[0] for result in built if kind in result)
        counted = " | ".join(str(counts[mark]) for mark in ("right", "refused", "fault"))
        right = [result for result in built if result.get(kind) == "right"] if kind in MEASURED else []
        largest = max((float(result[f"{kind} off by"]) for result in right), default=None)
        lines.append(f"| {TITLES[kind]} | {counted} | {'-' if largest is None else f'{largest:.0e}'} |")
    layouts = Counter(result["layout"] for result in built if "layout" in result)
    lines += ["", "Texts run " + ", ".join(f"{name} in {count}" for name, count in layouts.most_common()) + ".", ""]
    lines += ["| architecture | texts run | attends | " + " | ".join(TITLES[kind] for kind in CHECKS) + " |"]
    lines += ["|" + "---|" * (3 + len(CHECKS))]
    for result in built:
        marks = [result.get(kind, "-").split(":")[0].replace("right", "✓") for kind in CHECKS]
        lines.append(
            f"| {result['name']} | "
            + " | ".join([result.get("layout", "-"), result.get("attends", "-"), *marks])
            + " |"
        )
    for mark, title in (("refused", "Refused"), ("fault", "Faults")):
        found = [
            f"- {result['name']}, {TITLES[kind]}: {result[kind].partition(': ')[2]}"
            for result in built
            for kind in CHECKS
            if result.get(kind, "").startswith(mark)
        ]
        lines += ["", f"## {title}", "", *(found or ["None."])]
    missing = [f"- {result['name']}: {result['built']}" for result in results if result["built"] != "right"]
    lines += ["", "## Not built", "", *missing]
    return re.sub(r"/\S*?/tmp\w+(?=/)", "FOLDER", "\n".join(lines)) + "\n"


def main() -> None:
    """Check the architectures that are named, or all that are not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures; those without a result by default")
    parser.add_argument("--results", type=Path, default=Path("architectures.jsonl"), help="file of results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no check after that")
    parser.add_argument("--table", action="store_true", help="write docs/architectures.md, and check nothing")
    arguments = parser.parse_args()
    lines = arguments.results.read_text(encoding="utf-8").splitlines() if arguments.results.exists() else []
    results = {result["name"]: result for result in map(json.loads, lines)}
    if arguments.table:
        ordered = [results[name] for name in text_architectures() if name in results]
        (DOCS / "architectures.md").write_text(table(ordered), encoding="utf-8")
        return
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    gc.freeze()  # every run collects once, at its end
    started = time.perf_counter()
    for name in arguments.names or [name for name in text_architectures() if name not in results]:
        if time.perf_counter() - started > arguments.seconds:
            break
        result = check(name)
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

"""Run the code and the commands of angle_emb's releases on this package: python -m benchmarks.angle_emb_code FOLDER ...

A FOLDER is an unpacked release or a clone. The Python and shell blocks of its README (also that in the metadata of a
wheel) and of its documentation, its tests, examples and scripts are read from there, and run with angle_emb called
angle, in a folder with small random models and data sets under the names that they use. Training commands run without
their launcher and end after a step, on a machine without GPUs in float32; without a hub they push nothing. A table, in
Markdown, says what became of each: it holds places and names, not their text.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from angle.data import sample
from angle.modeling.tiny import tiny_tokenizer

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: A block in reStructuredText goes as far as its indentation.
DIRECTIVE = re.compile(r"^ *\.\. code-block:: (\w+)\n((?:[ \t]*\n|(?: {4}|\t).*\n?)+)", re.MULTILINE)
SHELLS = ("bash", "shell", "sh")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DECODER = re.compile("llama|qwen|mistral", re.IGNORECASE)
LAUNCHED = re.compile(r"-m\s+angle_emb\.angle_trainer|\bangle-trainer\b")
#: Outcomes that are neither: stand-ins reach no score, blocks leave out what they do not talk about.
SCORE, NOT_WHOLE, OTHERS = "runs up to its check of a score", "not a whole command", "does not import angle_emb"
TIMEOUT = 900


@dataclass(frozen=True)
class Piece:
    """A block, a test or a script."""

    place: str
    language: str
    text: str


def pieces(release: Path) -> Iterator[Piece]:
    """Yield what can be run in a release."""
    documents = [*release.glob("README*.md"), *release.glob("*.dist-info/METADATA")]
    documents += [path for suffix in ("md", "rst") for path in release.rglob(f"docs/**/*.{suffix}")]
    for path in sorted(set(documents)):
        content = path.read_text(encoding="utf-8")
        found = (DIRECTIVE if path.suffix == ".rst" else FENCE).findall(content)
        blocks = [block for block in found if block[0].lower() in ("python", *SHELLS)]
        for number, (language, text) in enumerate(blocks, 1):
            yield Piece(f"{path.name}, block {number}", language.lower(), textwrap.dedent(text))
    for folder in ("tests", "scripts", "examples"):
        for path in sorted((release / folder).rglob("*")):
            if path.suffix in (".py", ".sh"):
                language = path.suffix.removeprefix(".").replace("py", "python")
                yield Piece(str(path.relative_to(release)), language, path.read_text(encoding="utf-8"))


def uses(text: str) -> str:
    """Return the names of angle_emb that code calls, with their keyword arguments."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return "–"
    known = {"from_pretrained", "encode", "evaluate", "fit", "truncate_layer", "cosine_similarity", "list_prompts",
             "CorrelationEvaluator", "AnglE", "AngleDataTokenizer", "push_to_hub", "save_pretrained"}  # fmt: skip
    calls: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in known:
                keywords = ", ".join(keyword.arg for keyword in node.keywords if keyword.arg)
                calls[f"`{name}({keywords})`"] = None
    return ", ".join(calls) or "–"


def make_model(folder: Path, *, is_decoder: bool, layers: int, width: int) -> None:
    """Write a small random model that knows the words of the built-in sentences."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    shared = {"vocab_size": len(tokenizer), "num_hidden_layers": layers, "num_attention_heads": 4}
    size = {"hidden_size": width, "intermediate_size": 32, "max_position_embeddings": 512}
    if is_decoder:
        LlamaForCausalLM(LlamaConfig(**shared, **size)).save_pretrained(folder)
    else:
        BertModel(BertConfig(**shared, **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_adapter(folder: Path, base: Path) -> None:
    """Write a random adapter of a decoder."""
    import peft
    from transformers import AutoModelForCausalLM

    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(folder)


def make_data(folder: Path, name: str, *, as_files: bool, subset: str | None) -> None:
    """Write a data set, of triples where its name says so: as files, as on the hub, or as `save_to_disk` does."""
    import datasets

    is_triples = "format_b" in name or "nli_for" in name or "triples" in name
    splits = datasets.DatasetDict()
    for split in ("train", "validation", "test"):
        columns = sample.columns("B" if is_triples else "A", split, 64)
        if not is_triples and not re.search("angle[_-]format", name):
            columns = {"sentence1": columns["text1"], "sentence2": columns["text2"], "score": columns["label"]}
        splits[split] = datasets.Dataset.from_dict(columns)
    if not as_files and subset is None:
        splits.save_to_disk(folder)
        return
    for split, rows in splits.items():
        rows.to_json(folder / (subset or "") / f"{split}.jsonl")
    if subset is not None:
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {subset}\n  data_dir: {subset}\n---\n")


def prepare(folder: Path, text: str) -> None:
    """Write stand-ins for the models, adapters and data sets that a piece names."""
    sizes = [int(size) for size in re.findall(r"(?:embedding_size=|ese_compression_size )(\d+)", text)]
    depths = re.findall(r"truncate_layer\((?:layer_index=)?(\d+)|START_INDEX\W+(\d+)", text)
    layers = max((int(depth) + 1 for pair in depths for depth in pair if depth), default=2)

    def named_by(*ways: str) -> set[str]:
        return {name for way in ways for name in re.findall(rf"{way}[\s=(]*['\"]?({HUB_NAME.pattern})", text)}

    loaded = named_by("load_dataset")
    given = named_by("train_name_or_path", "valid_name_or_path", "valid_name_or_path_for_callback")
    adapters = named_by("pretrained_lora_path")
    models = named_by("from_pretrained", "AnglE", "--model_name_or_path", "teacher_name_or_path")
    for name in models:
        is_decoder = bool(DECODER.search(name))
        make_model(folder / name, is_decoder=is_decoder, layers=layers, width=max([64, *sizes]))
    for name in adapters:
        make_adapter(folder / name, folder / next(model for model in models if DECODER.search(model)))
    subset = re.search(r"train_subset_name\s+(\S+)", text)
    for name in loaded | given:
        make_data(folder / name, name, as_files=name in loaded, subset=subset and subset[1])


def command(text: str) -> list[str] | None:
    """Return a training command as the words after the program; None if it is not whole."""
    text = text.replace("\\\n", " ")
    line = next((line for line in text.splitlines() if LAUNCHED.search(line)), "")
    words = shlex.split(re.sub(r"--push_to_hub\s+1", "", LAUNCHED.split(line)[-1]), comments=True)
    is_whole = "--help" in words or any("model_name_or_path" in word for word in words)
    return words if is_whole and "..." not in words else None


def run(piece: Piece, repository: Path) -> str:
    """Return what becomes of a piece."""
    environment = os.environ | {"PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    if piece.language == "python":
        if "angle_emb" not in piece.text:
            return OTHERS
        code = piece.text.replace("angle_emb", "angle")
        code += "\n" + "\n".join(f"{name}()" for name in re.findall(r"^def (test_\w+)\(\)", code, re.MULTILINE))
        words = [sys.executable, "-c", code]
    else:
        if not LAUNCHED.search(piece.text):
            return "nothing of angle_emb to run"
        parsed = command(piece.text)
        if parsed is None:
            return NOT_WHOLE
        words = [sys.executable, "-m", "angle.angle_trainer", *parsed]
        words += ["--max_steps", "1"] if "--max_steps" not in parsed else []
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), piece.text)
        try:
            done = subprocess.run(words, cwd=scratch, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"still runs after {TIMEOUT} s"
    if done.returncode == 0:
        return "runs"
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if last.startswith("AssertionError"):
        return SCORE
    missing = re.fullmatch(r"ModuleNotFoundError: No module named '(?!angle)(\w+)'", last)
    if missing:
        return f"needs the package {missing[1]}, which is not installed"
    return f"`{last.replace(scratch, '.')[:220]}`"


def main(folders: list[str]) -> None:
    """Print the table."""
    repository = Path(__file__).resolve().parents[1]
    print("| release | place | calls | outcome |\n|---|---|---|---|")
    for folder in map(Path, folders):
        for piece in pieces(folder):
            outcome = run(piece, repository)
            calls = uses(piece.text) if piece.language == "python" else "a command"
            if outcome != "nothing of angle_emb to run":
                print(f"| {folder.name} | {piece.place} | {calls} | {outcome} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

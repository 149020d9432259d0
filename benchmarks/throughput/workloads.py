"""The measured workloads."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.throughput.jobs import ANGLE_EMB, CACHED, OWN, PEERS, SBERT


@dataclass(frozen=True)
class Workload:
    """A model, rows and a batch size."""

    name: str
    title: str
    model: str
    """minilm or smollm2, given on the command line, or a shape with random weights: bert-base or llama-7b."""
    rows: str
    """stsb or nli; for encoding, stsb-test."""
    batch_size: int
    steps: int
    """Steps per round that count."""
    format: str = "A"
    systems: tuple[str, ...] = (OWN, *PEERS)
    precisions: tuple[str, ...] = ("float32", "bf16")
    needs_gpu: bool = False
    settings: dict[str, object] = field(default_factory=dict)
    """Further fields of the workload's jobs."""

    @property
    def is_training(self) -> bool:
        """Whether the workload trains; otherwise it encodes."""
        return self.rows != "stsb-test"


_SEVEN = {"decoder": True, "lora": 64, "dtype": "bfloat16", "both_directions": True, "max_length": 60}
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("stsb-32", "MiniLM-L6, STS-B (A), batch 32", "minilm", "stsb", 32, 20),
        Workload("stsb-64", "MiniLM-L6, STS-B (A), batch 64", "minilm", "stsb", 64, 12),
        Workload("nli-32", "MiniLM-L6, NLI triples (B), batch 32", "minilm", "nli", 32, 16, "B"),
        Workload(
            "nli-128", "MiniLM-L6, NLI triples (B), batch 128", "minilm", "nli", 128, 6, "B", (OWN, *PEERS, CACHED)
        ),
        Workload(
            "bert-128", "BERT-base shape, NLI triples (B), batch 128", "bert-base", "nli", 128, 30, "B", needs_gpu=True
        ),
        Workload(
            "smollm2-32",
            "SmolLM2-135M, LoRA r16, NLI triples (B), batch 32",
            "smollm2",
            "nli",
            32,
            4,
            "B",
            settings={"decoder": True, "lora": 16},
        ),
        Workload(
            "llama7b-120",
            "Llama-7B shape in bfloat16, LoRA r64, BiLLM, NLI triples (B), batch 120, 60 tokens at most",
            "llama-7b",
            "nli",
            120,
            20,
            "B",
            precisions=("bf16",),
            needs_gpu=True,
            settings=_SEVEN,
        ),
        Workload(
            "llama7b-nf4-120",
            "Llama-7B shape in NF4, LoRA r64, BiLLM, NLI triples (B), batch 120, 60 tokens at most",
            "llama-7b",
            "nli",
            120,
            20,
            "B",
            precisions=("bf16",),
            needs_gpu=True,
            settings=_SEVEN | {"bits": 4},
        ),
        Workload(
            "encode",
            "MiniLM-L6 encodes STS-B's test sentences, 64 at a time",
            "minilm",
            "stsb-test",
            64,
            1,
            systems=(OWN, SBERT),
            precisions=("float32",),
        ),
    )
}
#: Notes below the tables.
NOTES = (
    "Rows: every system trains on the same rows, this project in the order of the file, the peers in their own. Texts "
    "that a batch has twice count twice in rows/s and once in tokens/s: its tokens are those of the distinct texts, "
    "special tokens included, cut at 128 where no other limit is given, without padding.",
    "Settings: dropout as in the model's own configuration, AdamW at a learning rate of 5e-5, gradients clipped at 1, "
    "each system's other defaults. Nothing is evaluated, saved or logged. A step lasts from the end of one optimiser "
    "step to the end of the next, less the time in the peers' collators, which tokenise there; this project tokenises "
    "before training.",
    f"Losses: this project and {ANGLE_EMB} compute the whole objective (A: cosine 1, in-batch 20, angle 1; B: in-batch "
    f"20, angle 1), {SBERT} its AnglELoss (A) or MultipleNegativesRankingLoss (B), which is less.",
    "Step: the median of all steps of all rounds, in brackets the medians of the best and the worst round.",
    "x bare: the step over the forward and backward of the embeddings' sum, by this project's encoder on the same "
    "batches, without a loss and an optimiser. Against the faster peer: how many of this project's steps fit in one of "
    "the peer's. Both are the median of the rounds, in brackets the lowest and the highest.",
    "Memory: resident memory of the process, libraries included, at its highest until the last step; on a GPU what "
    "torch had allocated there.",
    f"Decoders: every system gets the texts alone; {SBERT} would otherwise put them into the model's chat template.",
    f"{ANGLE_EMB} and {SBERT} run decoders with causal attention: neither has a way to bidirectional layers that works "
    f"with transformers 5.",
)

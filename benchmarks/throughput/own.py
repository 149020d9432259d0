"""Training and encoding with this project, and the bare loop that all systems are compared with."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from angle import Encoder, ModelConfig, PoolingConfig, TrainConfig, build_config
from angle.config import BillmConfig, LoraConfig
from angle.config.overrides import hydra_override
from angle.evaluation.metrics import cosines, spearman
from angle.kernels import KERNEL_NAMES
from angle.kernels.allocator import keep_freed_memory
from angle.structures import FORMATS
from angle.training.loop import fit
from benchmarks.throughput.clock import StepClock, peak_memory, synchronize
from benchmarks.throughput.figures import model_flops
from benchmarks.throughput.jobs import ANGLE_EMB, BARE, LORA_DROPOUT, OWN, REPO, SBERT, TAUS, Job
from benchmarks.throughput.techniques import disable, kernels_without

#: Weights of the cosine, in-batch and angle terms: this project's defaults, and the equivalents of each peer's loss.
WEIGHTS = {
    "A": {OWN: (1.0, 20.0, 1.0), ANGLE_EMB: (1.0, 20.0, 1.0), SBERT: (0.0, 0.0, 1.0)},
    "B": {OWN: (0.0, 20.0, 1.0), ANGLE_EMB: (0.0, 20.0, 1.0), SBERT: (0.0, 1.0, 0.0)},
}
#: Number of texts to encode as a warm-up before the timed encoding.
WARM_TEXTS = 256
#: Texts of a batch that are embedded to score a model.
SCORED = 64


def run(job: Job) -> dict[str, Any]:
    """Return the answer to a job."""
    if job.system == BARE:
        return _bare(job)
    return {"train": _train, "loss": _loss, "encode": _encode, "fit": _fit, "score": _score}[job.task](job)


def _config(job: Job, **train: Any) -> TrainConfig:
    cosine, in_batch, angle = WEIGHTS[job.format][job.objective]
    model: dict[str, Any] = {"name_or_path": job.model, "max_length": job.max_length, "dtype": job.dtype}
    if job.without:
        model["kernels"] = kernels_without(job.without, KERNEL_NAMES if job.kernels is None else job.kernels)
    elif job.kernels is not None:
        model["kernels"] = list(job.kernels)
    lora: dict[str, Any] = {}
    if job.lora is not None:
        lora = {"enabled": True, "r": job.lora, "alpha": 2 * job.lora, "dropout": LORA_DROPOUT}
    settings = {
        "model": model | {"load_kbit": job.bits},
        "pooling": {"strategy": "avg"},
        "lora": lora,
        "billm": {"enabled": True} if job.both_directions else {},
        "loss": {"cosine_w": cosine, "ibn_w": in_batch, "angle_w": angle, "reverse_w": 0.0, **TAUS},
        # In the order of the file, so that the bare loop sees the same batches.
        "data": {
            "train": {"name_or_path": job.rows},
            "shuffle": False,
            "duplicates": "mask" if job.objective == OWN else "keep",
        },
        "train": {
            "output_dir": f"{job.scratch}/run",
            "batch_size": job.batch_size,
            "learning_rate": job.learning_rate,
            "mixed_precision": "bf16" if job.precision == "bf16" else "no",
            "seed": job.seed,
            "dropout": "own",
            "warmup_steps": job.warmup_ratio,
            "save_steps": 0,
            "eval_steps": 0,
            **train,
        },
    }
    return build_config(settings, TrainConfig)


def _composed(job: Job, **train: Any) -> TrainConfig:
    """Return what train.py composes from the job's overrides, with the job's rows, model, length and schedule."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    before = {"pooling.strategy": "avg", "train.save_steps": 0, "train.eval_steps": 0}
    before["train.warmup_steps"] = job.warmup_ratio
    after = {
        "model.name_or_path": job.model,
        "model.max_length": job.max_length,
        "data.train.name_or_path": job.rows,
        "data.shuffle": False,
        "train.output_dir": f"{job.scratch}/run",
        "train.batch_size": job.batch_size,
        "train.learning_rate": job.learning_rate,
        "train.max_steps": job.steps,
        "train.seed": job.seed,
        **{f"train.{name}": value for name, value in train.items()},
    }
    words = ["data=files", *(hydra_override(key, value) for key, value in before.items())]
    words += [*job.options["overrides"], *(hydra_override(key, value) for key, value in after.items())]
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        return build_config(compose("train", words), TrainConfig)


def _train(job: Job) -> dict[str, Any]:
    disabled, clock = disable(job.without), StepClock()
    # The data set is whole: what a step costs may depend on the tokens that it has in all.
    folder = fit(_config(job, max_steps=job.steps, logging_steps=1_000_000, **disabled.train)).folder
    disabled.check()
    return clock.answer(job.warmup) | {"kernels": json.loads((folder / "run.json").read_text())["kernels"]}


def _loss(job: Job) -> dict[str, Any]:
    disabled = disable(job.without)
    options = {"max_steps": 1, "logging_steps": 1, **disabled.train}
    folder = fit(_composed(job, **options) if job.options else _config(job, **options)).folder
    disabled.check()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"loss": next(record["loss"] for record in records if "loss" in record)}


def _fit(job: Job) -> dict[str, Any]:
    clock = StepClock()
    folder = fit(_composed(job)).folder
    return clock.answer(job.warmup) | {"model": str(folder / "final")}


def _score(job: Job) -> dict[str, Any]:
    """Return Spearman's correlation of mean-pooled embeddings' cosines by file, whichever system saved the model."""
    encoder = Encoder.load(ModelConfig(job.model, max_length=job.max_length), PoolingConfig("avg"))
    encoder = encoder.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    answer = {}
    for file in job.options["files"]:
        rows = replace(job, rows=file).read()
        texts = ([row[column] for row in rows] for column in ("text1", "text2"))
        left, right = (encoder.encode(column, batch_size=SCORED) for column in texts)
        answer[file] = spearman(cosines(left, right), [row["label"] for row in rows])
    return answer


def _bare(job: Job) -> dict[str, Any]:
    """Time forward and backward of the embeddings' sum on the training batches, with each distinct text once."""
    torch.manual_seed(job.seed)
    encoder = Encoder.load(
        ModelConfig(job.model, max_length=job.max_length, dtype=job.dtype, load_kbit=job.bits),
        PoolingConfig("avg"),
        None if job.lora is None else LoraConfig(True, job.lora, 2 * job.lora, LORA_DROPOUT),
        BillmConfig(enabled=True) if job.both_directions else None,
    )
    encoder = encoder.to("cuda" if torch.cuda.is_available() else "cpu").train()
    rows, roles = job.read(), FORMATS[job.format].roles
    seconds, cpu, flops = [], [], []
    with keep_freed_memory(encoder):
        for first in range(0, len(rows), job.batch_size):
            batch = rows[first : first + job.batch_size]
            tokens = encoder.tokenizer(list(dict.fromkeys(row[role] for row in batch for role in roles)))
            ids, lengths = torch.from_numpy(tokens.ids.astype(np.int64)).to(encoder.device), tokens.lengths
            encoder.zero_grad(set_to_none=True)
            synchronize()
            start, cpu_start = time.perf_counter(), time.process_time()
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=job.precision == "bf16"):
                total = encoder(ids, lengths).sum()
            total.backward()
            synchronize()
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
            flops.append(_flops(encoder, lengths.tolist()))
    return {
        "seconds": seconds[job.warmup :],
        "cpu": cpu[job.warmup :],
        "flops": flops[job.warmup :],
        "memory": peak_memory(),
    }


def _flops(encoder: Encoder, lengths: list[int]) -> float:
    """Return the floating-point operations of a forward and backward pass without padding."""
    named = encoder.backbone.named_modules()
    linear = [module for name, module in named if isinstance(module, torch.nn.Linear) and "pooler" not in name]
    sizes = [(module.in_features * module.out_features, module.weight.requires_grad) for module in linear]
    trained = sum(size for size, is_trained in sizes if is_trained)
    config = encoder.backbone.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return model_flops(sum(size for size, _ in sizes) - trained, trained, config.num_hidden_layers, width, lengths)


def _encode(job: Job) -> dict[str, Any]:
    texts = [row["text"] for row in job.read()]
    encoder = Encoder.load(ModelConfig(job.model, max_length=job.max_length), PoolingConfig("avg"))
    encoder = encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    encoder.encode(texts[:WARM_TEXTS], batch_size=job.batch_size)
    start = time.perf_counter()
    found = encoder.encode(texts, batch_size=job.batch_size)
    seconds = time.perf_counter() - start
    np.save(f"{job.scratch}/embeddings.npy", found.numpy())
    return {"seconds": [seconds], "memory": peak_memory()}

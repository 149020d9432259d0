"""Training with angle_emb's AnglE.fit. Runs in its own environment, which lacks this project's requirements."""

from __future__ import annotations

from typing import Any

import angle_emb.angle
import torch
from datasets import Dataset

from benchmarks.throughput.clock import StepClock
from benchmarks.throughput.jobs import LORA_DROPOUT, TAUS, Job
from benchmarks.throughput.order import keep_file_order

#: angle_emb 0.6 halves the contrastive terms of triples, so 40 here is the weight 20 of its documented command.
WEIGHTS = {
    "A": {"cosine_w": 1.0, "ibn_w": 20.0, "angle_w": 1.0},
    "B": {"cosine_w": 0.0, "ibn_w": 0.0, "cln_w": 40.0, "angle_w": 1.0},
}


def run(job: Job) -> dict[str, Any]:
    """Return the answer to a job."""
    clock, losses = StepClock(), list[float]()
    model = _model(job)
    collate, loss = angle_emb.angle.AngleDataCollator.__call__, angle_emb.angle.AngleLoss.__call__

    def noted(*arguments: Any) -> torch.Tensor:
        value = loss(*arguments)
        losses.append(float(value.detach()))
        return value

    if job.task == "fit":
        keep_file_order()
    else:
        angle_emb.angle.AngleDataCollator.__call__ = clock.without(collate)  # it tokenises within the step
    if job.task == "loss":
        angle_emb.angle.AngleLoss.__call__ = noted
    model.fit(
        train_ds=Dataset.from_list(
            [{"query" if key == "text" else key: row[key] for key in row} for row in job.read()]
        ),
        batch_size=job.batch_size,
        output_dir=f"{job.scratch}/run",
        epochs=1,
        learning_rate=job.learning_rate,
        warmup_steps=job.warmup_ratio,
        save_strategy="no",
        bf16=job.precision == "bf16",
        # Every system trains on every row, unless the job says otherwise.
        **{"filter_duplicate": False, "loss_kwargs": WEIGHTS[job.format] | TAUS, **job.options},
        argument_kwargs={
            "use_cpu": not torch.cuda.is_available(),
            "seed": job.seed,
            "max_steps": job.steps if job.task == "fit" and job.steps else -1,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
        },
    )
    if job.task == "loss":
        return {"loss": losses[0]}
    return clock.answer(job.warmup) | {"model": f"{job.scratch}/run"}


def _model(job: Job) -> Any:
    options: dict[str, Any] = {}
    if job.lora is not None:
        options = {
            "apply_lora": True,
            "lora_config_kwargs": {"r": job.lora, "lora_alpha": 2 * job.lora, "lora_dropout": LORA_DROPOUT},
        }
    model = angle_emb.angle.AnglE(
        job.model,
        max_length=job.max_length,
        pooling_strategy="avg",
        is_llm=job.decoder,
        load_kbit=job.bits,
        torch_dtype=getattr(torch, job.dtype) if job.decoder else None,
        train_mode=True,
        tokenizer_padding_side="right",
        **options,
    )
    return model.cuda() if torch.cuda.is_available() and job.bits is None else model

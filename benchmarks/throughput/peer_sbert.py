"""Training with sentence-transformers' trainer and losses, and encoding with it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses, modules

from benchmarks.throughput.clock import StepClock, peak_memory
from benchmarks.throughput.jobs import CACHED, LORA_DROPOUT, Job
from benchmarks.throughput.order import keep_file_order

#: Number of texts to encode as a warm-up before the timed encoding.
WARM_TEXTS = 256


def run(job: Job) -> dict[str, Any]:
    """Return the answer to a job."""
    return _encode(job) if job.task == "encode" else _train(job)


def _model(job: Job) -> SentenceTransformer:
    options: dict[str, Any] = {"dtype": getattr(torch, job.dtype)}
    if job.bits is not None:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    words = modules.Transformer(
        job.model,
        max_seq_length=job.max_length,
        model_kwargs=options,
        # Texts as they are; otherwise a model with a chat template would get each of them as a user's message.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    if words.tokenizer.pad_token is None:
        words.tokenizer.pad_token = words.tokenizer.eos_token
    words.tokenizer.padding_side = "right"
    model = SentenceTransformer(modules=[words, modules.Pooling(words.get_embedding_dimension(), "mean")])
    if job.lora is not None:
        from peft import LoraConfig

        model.add_adapter(
            LoraConfig(r=job.lora, lora_alpha=2 * job.lora, lora_dropout=LORA_DROPOUT, target_modules="all-linear")
        )
    return model


def _train(job: Job) -> dict[str, Any]:
    clock, found = StepClock(), list[float]()
    model = _model(job)
    cached = "Cached" if job.system == CACHED else ""
    default = "AnglELoss" if job.format == "A" else f"{cached}MultipleNegativesRankingLoss"
    loss = getattr(losses, job.options.get("loss", default))(model)
    if job.task == "loss":
        loss.register_forward_hook(lambda _module, _inputs, value: found.append(float(value.detach())))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=f"{job.scratch}/run",
            num_train_epochs=1,
            max_steps=job.steps if job.task == "fit" and job.steps else -1,
            per_device_train_batch_size=job.batch_size,
            batch_sampler=job.options.get("batch_sampler", "batch_sampler"),
            learning_rate=job.learning_rate,
            warmup_steps=job.warmup_ratio,
            bf16=job.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            seed=job.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(job.read()),
        loss=loss,
    )
    if job.task == "fit":
        keep_file_order()
        trainer.train()
        model.save_pretrained(f"{job.scratch}/model", create_model_card=False)
        return clock.answer(job.warmup) | {"model": f"{job.scratch}/model"}
    collator = type(trainer.data_collator)
    collator.__call__ = clock.without(collator.__call__)  # it tokenises within the step
    trainer.train()
    return {"loss": found[0]} if job.task == "loss" else clock.answer(job.warmup)


def _encode(job: Job) -> dict[str, Any]:
    texts, model = [row["text"] for row in job.read()], _model(job)
    model.encode(texts[:WARM_TEXTS], batch_size=job.batch_size, show_progress_bar=False)
    start = time.perf_counter()
    embeddings = model.encode(texts, batch_size=job.batch_size, show_progress_bar=False)
    seconds = time.perf_counter() - start
    np.save(f"{job.scratch}/embeddings.npy", embeddings)
    return {"seconds": [seconds], "memory": peak_memory()}

"""AnglE: the class of angle_emb on top of this package's encoder and training loop."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from angle.api.base import AngleBase
from angle.api.datasets import check_same_preparation, prepared_settings
from angle.api.encoding import depth_for, dimensions_for, tokenizer_for
from angle.api.in_memory import data_argument, stored_for_run, stored_temporarily
from angle.api.scores import Evaluated
from angle.api.settings import model_settings, training_settings
from angle.compat import arguments
from angle.config import TrainConfig
from angle.config.build import build_config
from angle.config.keys import unflatten
from angle.errors import ConfigError
from angle.evaluation.evaluators.sts import DEFAULT_POSITIVE_ABOVE, PairScores, load_sts, score_pairs
from angle.training.result import Result
from angle.training.run_folder import DATA_FOLDER, RunFolder


class AnglE(AngleBase):
    """A sentence encoder to train, evaluate and use.

    `AnglE.from_pretrained("WhereIsAI/UAE-Large-V1").encode(["a text"])`. Arguments have angle_emb's names;
    `angle.compat.arguments` maps them to settings.
    """

    def __init__(
        self,
        model_name_or_path: str,
        tokenizer_name_or_path: str | None = None,
        max_length: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        lora_config_kwargs: Mapping[str, Any] | None = None,
        pooling_strategy: str | int | None = None,
        apply_lora: bool | None = None,
        train_mode: bool = True,
        load_kbit: int | None = None,
        is_llm: bool | None = None,
        pretrained_model_path: str | None = None,
        pretrained_lora_path: str | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        tokenizer_padding_side: str | None = None,
        apply_billm: bool = False,
        billm_model_class: str | None = None,
        prompt_template: str | None = None,
        prompts: Mapping[str, str] | None = None,
        load_mlm_model: bool = False,
        kbit_kwargs: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        """Load the encoder.

        Args:
            model_name_or_path: a hub name, a folder, a run folder, a .gguf file, or an adapter.
            tokenizer_name_or_path: where to load the tokenizer from; None: from the model.
            max_length: maximum tokens per text; None: the model's own limit, at most 512.
            model_kwargs: dtype, attn_implementation, trust_remote_code, revision.
            lora_config_kwargs: settings of a new adapter for `fit`: r, lora_alpha, lora_dropout, target_modules.
            pooling_strategy: cls, avg, mean, max, last, cls_avg, cls_max or the index of a token; None: what the
                model specifies, otherwise cls for encoders and avg for decoders.
            apply_lora: whether `fit` trains a new adapter; None: only for decoders.
            train_mode: accepted but not needed: `fit` trains, nothing else does.
            load_kbit: 4 or 8: quantise the weights to 4 or 8 bits.
            is_llm: whether the model is a decoder; None: detected.
            pretrained_model_path: weights to load instead, with the tokenizer of `model_name_or_path`.
            pretrained_lora_path: an adapter to load on top of the weights.
            torch_dtype: type of the weights: float32, bfloat16, float16 or auto.
            device: where to put the model; None: a GPU if there is one.
            tokenizer_padding_side: left or right.
            apply_billm: whether layers attend in both directions, from BiLLM_START_INDEX on.
            billm_model_class: the architecture that the model must have, if given.
            prompt_template: template with {text}, applied to every text.
            prompts: templates for queries and documents in its place: {"query": "query: ", "document": "passage: "}.
            load_mlm_model: accepted; the head that angle_emb loads for it gives no embedding.
            kbit_kwargs: use_gradient_checkpointing, which `fit` heeds.
            unknown: any other argument raises a TypeError that names the nearest one that exists.

        Raises:
            ConfigError: the model cannot be loaded.

        """
        arguments.refuse_unknown(AnglE, unknown, inspect.signature(AnglE.__init__).parameters)
        settings = {
            "model.name_or_path": pretrained_model_path or model_name_or_path,
            "model.tokenizer_name_or_path": tokenizer_name_or_path
            or (model_name_or_path if pretrained_model_path else None),
            "model.max_length": max_length,
            "model.load_kbit": load_kbit if load_kbit != 16 else None,
            "model.is_llm": is_llm,
            "model.adapter": pretrained_lora_path,
            "model.padding_side": tokenizer_padding_side,
            "model.prompt": prompt_template,
            "model.prompts": dict(prompts or {}),
            "model.end_token": False if pooling_strategy == "last" else None,  # null would append one, unlike angle_emb
            "pooling.strategy": "auto" if pooling_strategy is None else str(pooling_strategy),
        }
        settings = model_settings(
            model_kwargs,
            settings,
            torch_dtype=torch_dtype,
            apply_billm=apply_billm,
            billm_model_class=billm_model_class,
            kbit_kwargs=kbit_kwargs,
        )
        self._apply_lora, self._lora = apply_lora, arguments.lora_settings(lora_config_kwargs)
        self._prompt: str | None = None
        self.result: Result | None = None
        """The result of the last `fit`."""
        super().__init__(settings, device)

    @classmethod
    def from_pretrained(cls, model_name_or_path: str, **kwargs: Any) -> AnglE:
        """Return the encoder; the arguments are those of the class."""
        return cls(model_name_or_path, **kwargs)

    def fit(
        self,
        train_ds: Any,
        valid_ds: Any = None,
        valid_ds_for_callback: Any = None,
        batch_size: int | None = None,
        output_dir: str | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
        warmup_steps: float | None = None,
        logging_steps: int | None = None,
        eval_steps: int | None = None,
        eval_strategy: str = "steps",
        save_steps: int | None = None,
        save_strategy: str = "steps",
        save_total_limit: int | None = None,
        gradient_accumulation_steps: int | None = None,
        fp16: bool | None = None,
        bf16: bool | None = None,
        argument_kwargs: Mapping[str, Any] | None = None,
        trainer_kwargs: Mapping[str, Any] | None = None,
        loss_kwargs: Mapping[str, Any] | None = None,
        apply_ese: bool = False,
        filter_duplicate: bool = True,
        text_prompt: str | None = None,
        query_prompt: str | None = None,
        doc_prompt: str | None = None,
        push_to_hub: bool = False,
        hub_model_id: str | None = None,
        hub_private_repo: bool = True,
        config: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> AnglE:
        """Train with the loop of train.py, load the best model, or the last if there is none, and return self.

        Scores and the run folder are in `result`.

        Args:
            train_ds: rows of format A, B or C: a data set (prepared by `AngleDataTokenizer` or not), a list of
                mappings, a file or a name on the hub.
            valid_ds: rows whose loss is reported; if they are of format A, they choose the best model too.
            valid_ds_for_callback: rows of format A that choose the best model instead.
            batch_size: rows per process in one evaluation of the objective; default 32.
            output_dir: the run folder; None: runs/<date>/<time>.
            epochs: passes over the rows; default 1.
            learning_rate: peak learning rate; default 1e-5.
            warmup_steps: steps of linear warm-up; below 1, the fraction of all steps; default 1000.
            logging_steps: steps between two lines of metrics; default 10.
            eval_steps: steps between two evaluations; default 1000.
            eval_strategy: steps, epoch or no.
            save_steps: steps between two checkpoints; default 100.
            save_strategy: steps, epoch or no.
            save_total_limit: number of checkpoints to keep; default 1.
            gradient_accumulation_steps: batches per optimiser step; default 1.
            fp16: whether to train in half precision; without a GPU, one line says what is used instead.
            bf16: the same in bfloat16.
            argument_kwargs: the arguments of transformers' TrainingArguments that have an equivalent here.
            trainer_kwargs: teacher_name_or_path, teacher_pooling_strategy, ese_kl_temperature, ese_compression_size,
                apply_ese_pca.
            loss_kwargs: cosine_w, ibn_w, angle_w (default 0, 20, 1) and cosine_tau, ibn_tau, angle_tau (default 20);
                with cln_w, or one of the three prompts, the weights of angle_emb 0.6.1 (0, 1, 0.02, and cln_w 1).
            apply_ese: whether to train all layers and the first dimensions (Espresso).
            filter_duplicate: whether to keep equal texts in a batch from being negatives.
            text_prompt: template with {text} of all texts without another one.
            query_prompt: template of the texts of formats B and C.
            doc_prompt: template of the positives and negatives.
            push_to_hub: whether to push the model to the hub once training is over.
            hub_model_id: the repository to push to: user/name.
            hub_private_repo: whether the repository is private.
            config: any further settings, by group, as in angle/config/: {"train": {"seed": 7}}. They take precedence.
            unknown: any other argument raises a TypeError that names the nearest one that exists.

        Raises:
            ConfigError, DataError: the settings or the data are wrong; raised before any training.
            TrainingError: the loss is not finite.

        """
        arguments.refuse_unknown(AnglE.fit, unknown, inspect.signature(AnglE.fit).parameters)
        settings = training_settings(
            {
                "train.batch_size": batch_size,
                "train.output_dir": output_dir,
                "train.epochs": epochs,
                "train.learning_rate": learning_rate,
                "train.warmup_steps": warmup_steps,
                "train.logging_steps": logging_steps,
                "train.eval_steps": eval_steps,
                "train.save_steps": save_steps,
                "train.save_total_limit": save_total_limit,
                "train.gradient_accumulation_steps": gradient_accumulation_steps,
            },
            argument_kwargs,
            trainer_kwargs,
            loss_kwargs,
            eval_strategy=eval_strategy,
            save_strategy=save_strategy,
            apply_ese=apply_ese,
            fp16=fp16,
            bf16=bf16,
            prompts={"text_prompt": text_prompt, "query_prompt": query_prompt, "doc_prompt": doc_prompt},
        )
        if "model.prompts" in settings:
            settings["model.prompts"] = self._settings["model.prompts"] | settings["model.prompts"]
        settings["data.duplicates"] = "mask" if filter_duplicate else "keep"
        hub = {"hub.push": push_to_hub, "hub.model_id": hub_model_id, "hub.private": hub_private_repo}
        settings = hub | settings  # argument_kwargs may have said it
        self._train(settings, train_ds, valid_ds, valid_ds_for_callback, config or {})
        return self

    def _train(
        self,
        settings: arguments.Settings,
        train_ds: Any,
        valid_ds: Any,
        valid_ds_for_callback: Any,
        config: Mapping[str, Any],
    ) -> None:
        """Train with the settings and data of `fit`, set `result`, and become the trained model."""
        from angle.api.training import fit

        settings = self._settings | settings | prepared_settings(train_ds, "train_ds", self.max_length)
        if self._apply_lora or (self._apply_lora is None and self.is_llm and self._settings["model.adapter"] is None):
            settings |= self._lora
        requested = arguments.merge_settings(unflatten(settings), config)
        train = requested["train"]
        run = RunFolder.choose(train.get("resume"), train.get("output_dir"))
        if not train.get("resume"):
            train["output_dir"] = str(run.path)
        data_arguments = {}
        for purpose, argument, data in (
            ("train", "train_ds", train_ds),
            ("valid", "valid_ds", valid_ds),
            ("valid_sts", "valid_ds_for_callback", valid_ds_for_callback),
        ):
            if data is not None:
                check_same_preparation(data, argument, self.max_length, settings)
                data_arguments[purpose] = data_argument(data, argument, run.path.resolve() / DATA_FOLDER)
        sources = {purpose: dataclasses.asdict(data.source) for purpose, data in data_arguments.items()}
        train_config = build_config(arguments.merge_settings({"data": sources}, requested), TrainConfig)
        self._encoder = None  # the loop loads its own, and two copies might not fit into memory
        with stored_for_run(run, train_config, data_arguments.values()):
            self.result = fit(train_config)
        if self.result.push_problem is not None:
            warnings.warn(self.result.push_problem, stacklevel=3)
        trained = {"model.name_or_path": str(self.result.folder)}
        self._settings |= trained | dict.fromkeys(("model.tokenizer_name_or_path", "model.adapter", "model.layers"))

    def evaluate(
        self,
        data: Any,
        batch_size: int = 64,
        threshold: float | None = None,
        device: str | torch.device | None = None,
        metric: str | None = None,
        prompt: str | None = None,
    ) -> float:
        """Return the Spearman correlation of the pairs' cosines, or the one of `metrics` called `metric`.

        The correlation unpacks into two: `corrcoef, accuracy = angle.evaluate(data)`.

        Args:
            data: rows of format A, as `fit` takes them. For the accuracy, labels above 0.5 are positive.
            batch_size: texts per batch.
            threshold: cosines above it are predicted positive; None: the threshold with the highest accuracy.
            device: the device to move the model to; None: where it is.
            metric: for example spearman_cosine or pearson_dot.
            prompt: template with {text}, or A, B or C; "" for none; None: as the model was trained.

        Raises:
            ConfigError, DataError: the rows have another format, all labels are equal, or the metric is unknown.

        """
        if device is not None:
            self.to(device)
        pairs = self._score(data, batch_size, prompt)
        metrics = pairs.metrics(DEFAULT_POSITIVE_ABOVE)
        if metric is not None:
            if metric not in metrics:
                raise ConfigError(f"metric={metric} is not known. Choose one of: {', '.join(metrics)}.")
            return metrics[metric]
        if threshold is None:
            return Evaluated(pairs.spearman, metrics["accuracy"])
        predicted = pairs.scores["cosine"] > threshold
        return Evaluated(pairs.spearman, float(np.mean(predicted == (pairs.labels > DEFAULT_POSITIVE_ABOVE))))

    def metrics(self, data: Any, batch_size: int = 64) -> dict[str, float]:
        """Return all correlations, and the best accuracy with its threshold as in `evaluate`, on rows of format A."""
        return self._score(data, batch_size).metrics(DEFAULT_POSITIVE_ABOVE)

    def _score(self, data: Any, batch_size: int, prompt: str | None = None) -> PairScores:
        prepared = prepared_settings(data, "data", self.max_length)
        prompt = prepared.get("model.prompt") if prompt is None else prompt
        tokenizer = tokenizer_for(self.encoder, None, prepared.get("model.end_token"), prompt)
        with stored_temporarily(data, "data") as source:
            corpus = load_sts(source, "test", tokenizer)
        return score_pairs(self.encoder, corpus, batch_size)

    def set_prompt(self, prompt: str | None) -> AnglE:
        """Let `encode` put texts into a template unless it is given another; None: as the model was trained."""
        self._prompt = prompt
        return self

    def encode(
        self,
        inputs: str | Mapping[str, str] | Iterable[str | Mapping[str, str]],
        max_length: int | None = None,
        end_with_eos: bool | None = None,
        to_numpy: bool = True,
        embedding_start: int = 0,
        embedding_size: int | None = None,
        device: str | torch.device | None = None,
        prompt: str | None = None,
        role: str | None = None,
        normalize_embedding: bool = False,
        batch_size: int = 64,
        layer_index: int = -1,
        show_progress: bool = False,
        padding: str | bool = "longest",
    ) -> npt.NDArray[np.float32] | Tensor:
        """Return embeddings (N, D) in float32, (1, D) for a single text.

        Args:
            inputs: one text or any number of them; for a template with more columns, mappings of `text` and those.
            max_length: maximum tokens per text; None: the model's own.
            end_with_eos: True: texts end with the end token; False: training may have appended one, which is left
                out, but not what the tokenizer itself ends texts with; None: as the model was trained.
            to_numpy: whether to return an array instead of a tensor on the CPU.
            embedding_start: the first dimension to return.
            embedding_size: how many dimensions to return; None: all from there on.
            device: the device to move the model to; None: where it is.
            prompt: template with {text}, or A, B or C; "" for none; None: as the model was trained.
            role: query or document, for the template that the model was trained with for these; a column's name, or
                another name that the model has a template for.
            normalize_embedding: whether to scale embeddings to unit length, after cutting them to those dimensions;
                those of a model with a Normalize module always have it.
            batch_size: texts per batch; the longest texts come first.
            layer_index: the number of layers to run; -1: all of them.
            show_progress: whether to show a progress bar.
            padding: accepted; padding never changes an embedding.

        Raises:
            ConfigError, ValueError: a template or length leaves no room for a text, or a text has no tokens.

        """
        from tqdm import tqdm

        if device is not None:
            self.to(device)
        encoder = self.encoder
        prompt = self._prompt if prompt is None and role is None else prompt
        tokenizer = tokenizer_for(encoder, max_length, end_with_eos, prompt, role)
        depth = depth_for(encoder, layer_index)
        dimensions = dimensions_for(encoder, embedding_start, embedding_size)
        is_many = isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")
        rows: list[Any] = list(inputs) if is_many and not isinstance(inputs, (str, Mapping)) else [inputs]
        arguments.check_texts(rows, tokenizer.columns)
        with tqdm(total=len(rows), unit="text", disable=not show_progress) as bar:
            embeddings = encoder.encode(rows, None, batch_size, bar.update, depth, dimensions, tokenizer)
        if normalize_embedding:
            embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
        return embeddings.numpy() if to_numpy else embeddings

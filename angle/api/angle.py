"""AnglE: the reference's class, over the encoder and the loop of this package."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from angle.api import arguments
from angle.api.datasets import as_source, notes_of
from angle.config import CONFIG_FILE, BillmConfig, ModelConfig, PoolingConfig, TrainConfig
from angle.errors import ConfigError
from angle.evaluation.sts import PairScores, load_sts, score_pairs
from angle.modeling.backbone import position_limit
from angle.modeling.depths import bare
from angle.modeling.description import locate
from angle.modeling.encoder import Encoder
from angle.modeling.tokenizer import TextTokenizer, TokenContract
from angle.processes import best_device
from angle.prompts import NAMED_PROMPTS
from angle.settings import build_config, load_config, nested
from angle.training.result import Result
from angle.training.run_folder import RunFolder, RunState


class AnglE:
    """An encoder to train, to measure and to use.

    `AnglE.from_pretrained("WhereIsAI/UAE-Large-V1").encode(["a text"])`. Arguments have the reference's names; what
    they are called among the settings stands in `angle.api.arguments`.
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
        **unknown: Any,
    ) -> None:
        """Load the encoder.

        Args:
            model_name_or_path: a hub name, a folder, a run folder, a .gguf file, or an adapter.
            tokenizer_name_or_path: where the tokenizer comes from; None: from the model.
            max_length: tokens a text may have; None: what the model says, at most 512.
            model_kwargs: dtype, attn_implementation, trust_remote_code, revision.
            lora_config_kwargs: of a fresh adapter, for `fit`: r, lora_alpha, lora_dropout, target_modules.
            pooling_strategy: cls, avg, mean, max, last, cls_avg, cls_max or the number of a token; None: what the
                model says, else cls for encoders and avg for decoders.
            apply_lora: whether `fit` trains a fresh adapter; None: for decoders.
            train_mode: taken and not needed: `fit` trains, everything else does not.
            load_kbit: 4 or 8: the weights in so many bits.
            is_llm: whether it is a decoder; None: detected.
            pretrained_model_path: weights to take instead, with the tokenizer of `model_name_or_path`.
            pretrained_lora_path: an adapter to put on the weights.
            torch_dtype: type of the weights: float32, bfloat16, float16 or auto.
            device: None: a GPU if there is one.
            tokenizer_padding_side: left or right.
            apply_billm: whether layers attend in both directions, from BiLLM_START_INDEX on.
            billm_model_class: the architecture that this must be, if given.
            prompt_template: template with {text}, applied to every text.
            unknown: raises TypeError, with the nearest argument that exists.

        Raises:
            ConfigError: whatever keeps the model from being loaded.

        """
        arguments.refuse_unknown(AnglE, unknown, inspect.signature(AnglE.__init__).parameters)
        settings = arguments.translated("model_kwargs", model_kwargs, arguments.MODEL)
        settings |= {
            "model.name_or_path": pretrained_model_path or model_name_or_path,
            "model.tokenizer_name_or_path": tokenizer_name_or_path
            or (model_name_or_path if pretrained_model_path else None),
            "model.max_length": max_length,
            "model.load_kbit": load_kbit if load_kbit != 16 else None,
            "model.is_llm": is_llm,
            "model.adapter": pretrained_lora_path,
            "model.padding_side": tokenizer_padding_side,
            "model.prompt": prompt_template,
            "pooling.strategy": "auto" if pooling_strategy is None else str(pooling_strategy),
        }
        dtype = torch_dtype if torch_dtype is not None else settings.pop("model.dtype", None)
        if dtype is not None:
            settings["model.dtype"] = str(dtype).removeprefix("torch.")
        if apply_billm:
            settings |= {"billm.enabled": True, "billm.model_class": billm_model_class}
        self._settings = settings
        self._apply_lora, self._lora = apply_lora, arguments.lora_settings(lora_config_kwargs)
        self._device = torch.device(device) if device is not None else best_device()
        self.result: Result | None = None
        """What came out of the last `fit`."""
        self._encoder: Encoder | None = None
        self._encoder = self._load()

    @classmethod
    def from_pretrained(cls, model_name_or_path: str, **kwargs: Any) -> AnglE:
        """Return the encoder; arguments are those of the class."""
        return cls(model_name_or_path, **kwargs)

    def _load(self) -> Encoder:
        groups = nested(self._settings)
        encoder = Encoder.load(
            ModelConfig(**groups["model"]),
            PoolingConfig(**groups["pooling"]),
            billm=BillmConfig(**groups["billm"]) if "billm" in groups else None,
            merge=False,  # so that what is saved and pushed is what was trained
        )
        return encoder.to(self._device).eval()

    @property
    def encoder(self) -> Encoder:
        """The encoder; loaded again where it was let go."""
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    @property
    def backbone(self) -> Any:
        """The transformers model."""
        return self.encoder.backbone

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.encoder.tokenizer.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens a text may have."""
        return self.encoder.tokenizer.max_length

    @property
    def pooling_strategy(self) -> str:
        """How token states become an embedding."""
        return self.encoder.pooling

    @property
    def is_llm(self) -> bool:
        """Whether it is a decoder."""
        return self.encoder.is_llm

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    def to(self, device: str | torch.device) -> AnglE:
        """Move the weights, and return self."""
        self._device = torch.device(device)
        self.encoder.to(self._device)
        return self

    def cuda(self) -> AnglE:
        """Move the weights to the GPU, and return self; without one, say so and stay."""
        if not torch.cuda.is_available():
            warnings.warn("There is no CUDA device here: the model stays on the CPU.", stacklevel=2)
            return self
        return self.to("cuda")

    def truncate_layer(self, layer_index: int) -> AnglE:
        """Keep the first `layer_index` layers alone, and return self."""
        self.encoder.keep(layers=layer_index)
        self._settings["model.layers"] = layer_index
        return self

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
        push_to_hub: bool = False,
        hub_model_id: str | None = None,
        hub_private_repo: bool = True,
        config: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> AnglE:
        """Train, by the loop of train.py, and take the best model, else the last one; return self.

        What came out, scores and folder, is in `result`.

        Args:
            train_ds: rows of format A, B or C: a data set (prepared by `AngleDataTokenizer` or not), a list of
                mappings, a file or a name on the hub.
            valid_ds: rows whose loss is reported; those of format A choose the best model too.
            valid_ds_for_callback: rows of format A that choose the best model instead.
            batch_size: rows a process gives to one evaluation of the objective; default 32.
            output_dir: the run folder; None: runs/<date>/<time>.
            epochs: passes over the rows; default 1.
            learning_rate: peak; default 1e-5.
            warmup_steps: steps of linear warm-up; below 1, the share of all; default 1000.
            logging_steps: steps between two lines of metrics; default 10.
            eval_steps: steps between two evaluations; default 1000.
            eval_strategy: steps, epoch or no.
            save_steps: steps between two checkpoints; default 100.
            save_strategy: steps, epoch or no.
            save_total_limit: checkpoints that are kept; default 1.
            gradient_accumulation_steps: batches in an optimiser step; default 1.
            fp16: half precision; without a GPU one line says what is done instead.
            bf16: the same in bfloat16.
            argument_kwargs: of transformers' TrainingArguments, those that have a home here.
            trainer_kwargs: teacher_name_or_path, teacher_pooling_strategy, ese_kl_temperature, ese_compression_size,
                apply_ese_pca.
            loss_kwargs: cosine_w, ibn_w, angle_w (0, 20, 1 unless given) and cosine_tau, ibn_tau, angle_tau (20).
            apply_ese: train all layers and the first dimensions (Espresso).
            filter_duplicate: keep equal texts in a batch from being negatives.
            push_to_hub: put the model on the hub once training is over.
            hub_model_id: where: user/name.
            hub_private_repo: whether it can be seen by you alone.
            config: any further settings, by group, as in angle/config.py: {"train": {"seed": 7}}. They win.
            unknown: raises TypeError, with the nearest argument that exists.

        Raises:
            ConfigError, DataError: anything wrong with the settings or the data, before any training.
            TrainingError: a loss that is no finite number.

        """
        from angle.training.loop import fit

        arguments.refuse_unknown(AnglE.fit, unknown, inspect.signature(AnglE.fit).parameters)
        given = {
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
        }
        arguments.check_given_once(given, argument_kwargs)
        settings = self._settings | arguments.fit_settings(given, eval_strategy, save_strategy)
        settings |= arguments.loss_settings(loss_kwargs) | arguments.trainer_settings(trainer_kwargs, apply_ese)
        settings |= arguments.translated("argument_kwargs", argument_kwargs, arguments.ARGUMENTS)
        settings["data.duplicates"] = "mask" if filter_duplicate else "keep"
        settings |= {"hub.push": push_to_hub, "hub.model_id": hub_model_id, "hub.private": hub_private_repo}
        if fp16 or bf16:
            settings["train.mixed_precision"] = "bf16" if bf16 else arguments.said_precision()
        if self._apply_lora or (self._apply_lora is None and self.is_llm and self._settings["model.adapter"] is None):
            settings |= self._lora
        settings |= self._notes(train_ds, "train_ds")
        asked = nested(settings)
        sources = {"train": train_ds, "valid": valid_ds, "valid_sts": valid_ds_for_callback}
        names = {"train": "train_ds", "valid": "valid_ds", "valid_sts": "valid_ds_for_callback"}
        for role, data in sources.items():
            if data is not None:
                self._check_alike(data, names[role], settings)
                asked["data"][role] = dataclasses.asdict(as_source(data, names[role]))
        built = build_config(arguments.merged(asked, config or {}), TrainConfig)
        self._encoder = None  # the loop loads it anew, and two copies might not fit
        result = fit(built)
        self.result = result
        if result.push_problem is not None:
            warnings.warn(result.push_problem, stacklevel=2)
        trained = {"model.name_or_path": str(result.folder)}
        self._settings |= trained | dict.fromkeys(("model.tokenizer_name_or_path", "model.adapter", "model.layers"))
        return self

    def _notes(self, data: Any, argument: str) -> arguments.Settings:
        """Return the settings that prepared rows ask for.

        Raises:
            ConfigError: texts that may be longer or shorter than the model's.

        """
        notes = notes_of(data)
        length = notes.get("max_length")
        if length is not None and length != self.max_length:
            raise ConfigError(
                f"{argument} was prepared for max_length={length}, but the model reads {self.max_length} tokens: give "
                f"both the same, by AnglE.from_pretrained(..., max_length={length})."
            )
        asked = {
            "data_format.name": notes.get("dataset_format"),
            "model.prompt": notes.get("prompt"),
            "model.end_token": notes.get("end_token"),
        }
        return {name: value for name, value in asked.items() if value is not None}

    def _check_alike(self, data: Any, argument: str, trained: arguments.Settings) -> None:
        """Raise ConfigError for rows that were prepared with another template or end than those that are trained on."""
        for name, value in self._notes(data, argument).items():
            if name != "data_format.name" and value != trained.get(name, value):
                raise ConfigError(
                    f"{argument} was prepared with {value!r}, but train_ds with {trained[name]!r}: prepare both by the "
                    f"same AngleDataTokenizer."
                )

    def evaluate(
        self,
        data: Any,
        batch_size: int = 64,
        threshold: float | None = None,
        device: str | torch.device | None = None,
        metric: str | None = None,
    ) -> tuple[float, float] | float:
        """Return (Spearman correlation, accuracy) of the cosines of pairs; with `metric`, that one of `metrics`.

        Args:
            data: rows of format A, as `fit` takes them. Labels above 0.5 are the positives of the accuracy.
            batch_size: texts at a time.
            threshold: cosines above it are called positive; None: the one with the highest accuracy.
            device: where to, if not where the model is.
            metric: for example spearman_cosine or pearson_dot.

        Raises:
            ConfigError, DataError: rows of another format, labels that are all the same, or an unknown metric.

        """
        if device is not None:
            self.to(device)
        scored = self._score(data, batch_size)
        found = scored.metrics()
        if metric is not None:
            if metric not in found:
                raise ConfigError(f"metric={metric} is not known. Choose one of: {', '.join(found)}.")
            return found[metric]
        if threshold is None:
            return scored.spearman, found["accuracy"]
        called = scored.scores["cosine"] > threshold
        return scored.spearman, float(np.mean(called == (scored.labels > 0.5)))

    def metrics(self, data: Any, batch_size: int = 64) -> dict[str, float]:
        """Return all correlations, the best accuracy and its threshold, of rows of format A."""
        return self._score(data, batch_size).metrics()

    def _score(self, data: Any, batch_size: int) -> PairScores:
        notes = self._notes(data, "data")
        tokenizer = self._tokenizer(None, notes.get("model.end_token"), notes.get("model.prompt"))
        return score_pairs(self.encoder, load_sts(as_source(data, "data"), "test", tokenizer), batch_size)

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
        normalize_embedding: bool = False,
        batch_size: int = 64,
        layer_index: int = -1,
        show_progress: bool = False,
    ) -> npt.NDArray[np.float32] | Tensor:
        """Return embeddings (N, D), float32; of one text (1, D).

        Args:
            inputs: a text, or any number of them; for a template with further columns, mappings with `text` and these.
            max_length: tokens a text may have, if not the model's.
            end_with_eos: whether texts end with the end token; None: as the model was trained.
            to_numpy: whether to return an array, and not a tensor on the CPU.
            embedding_start: the first dimension.
            embedding_size: how many dimensions; None: the rest.
            device: where to, if not where the model is.
            prompt: template with {text}, or A, B or C; "" for none; None: as the model was trained.
            normalize_embedding: whether embeddings are scaled to length 1, once they are cut.
            batch_size: texts at a time; longest first.
            layer_index: after how many layers; -1: all of them.
            show_progress: whether a bar is shown.

        Raises:
            ConfigError, ValueError: a template or a length that leaves no room for a text, or a text without tokens.

        """
        from tqdm import tqdm

        if device is not None:
            self.to(device)
        encoder, tokenizer = self.encoder, self._tokenizer(max_length, end_with_eos, prompt)
        one = isinstance(inputs, (str, Mapping)) or not isinstance(inputs, Iterable)
        rows: list[Any] = [inputs] if one else list(inputs)
        most = encoder.dimensions - embedding_start
        size = most if embedding_size is None else embedding_size
        kept, depth = slice(embedding_start, embedding_start + size), None if layer_index == -1 else layer_index
        if depth is not None and not 0 <= depth <= encoder.depths.layers:
            raise ConfigError(
                f"layer_index={depth} cannot work: the model has {encoder.depths.layers} layers; give a number up to "
                f"that, or -1 for all."
            )
        if not (embedding_start >= 0 and 1 <= size <= most):
            raise ConfigError(
                f"embedding_start={embedding_start} and embedding_size={embedding_size} cannot work: the model's "
                f"embeddings have {encoder.dimensions} dimensions."
            )
        arguments.check_texts(rows, tokenizer.columns)
        with tqdm(total=len(rows), unit="text", disable=not show_progress) as bar:
            out = encoder.encode(rows, None, batch_size, bar.update, depth, kept, tokenizer)
        if normalize_embedding:
            out = torch.nn.functional.normalize(out, dim=-1)
        return out.numpy() if to_numpy else out

    def _tokenizer(self, max_length: int | None, end_with_eos: bool | None, prompt: str | None) -> TextTokenizer:
        """Return the model's own way to write texts, or another one for a call."""
        own = self.encoder.tokenizer
        if max_length is None and end_with_eos is None and prompt is None:
            return own
        limit = position_limit(bare(self.backbone))
        if max_length is not None and max_length < 2:
            raise ConfigError(f"max_length={max_length} cannot work: it must be at least 2.")
        if max_length is not None and limit is not None and max_length > limit:
            raise ConfigError(
                f"max_length={max_length} cannot work: the model has positions for {limit} tokens; give {limit} or "
                f"less."
            )
        template = own.prompt if prompt is None else NAMED_PROMPTS.get(prompt, prompt) or None
        tokenizer = copy.deepcopy(own.tokenizer) if end_with_eos is not None else own.tokenizer
        return TextTokenizer(tokenizer, max_length or own.max_length, template, end_with_eos)

    def save_pretrained(self, output_dir: str, exist_ok: bool = True) -> None:
        """Write weights (or adapters alone), tokenizer and contract into a folder.

        Args:
            output_dir: a new folder, or an empty one.
            exist_ok: whether it may be there, and empty.

        Raises:
            ConfigError: it holds files, or is there though it must not be.

        """
        folder = Path(output_dir)
        if folder.exists() and (not exist_ok or folder.is_file() or any(folder.iterdir())):
            raise ConfigError(f"output_dir={folder} is there already, so nothing is written: give a new folder.")
        if folder.exists():
            folder.rmdir()
        self.encoder.save(folder)

    def push_to_hub(self, hub_model_id: str, private: bool = True, exist_ok: bool = False) -> str:
        """Put the model on the hub, with its card, in one commit, and return its address.

        Args:
            hub_model_id: user/name; made if it is not there.
            private: whether a new repository can be seen by you alone.
            exist_ok: whether the files of one that holds others may be replaced, all of them.

        Raises:
            ConfigError: a name that is none, no token, or a repository that is taken.
            HubError: the hub did not take it.

        """
        from angle.export.hub import push_folder, stage
        from angle.export.model_card import model_card

        name = str(self._settings["model.name_or_path"])
        run = RunFolder(Path(name))
        is_run = run.state() is RunState.FINISHED and TokenContract.load(Path(locate(name))) == self.encoder.contract
        config = load_config(run.path / CONFIG_FILE) if is_run else None
        with TemporaryDirectory() as scratch:
            saved, staged = Path(scratch) / "model", Path(scratch) / "staged"
            self.encoder.save(saved)
            staged.mkdir()
            base = config.model.name_or_path if config else str(Path(name).resolve() if Path(name).exists() else name)
            pushed = stage(saved, staged, hub_model_id, base)
            card = model_card(pushed, config, run.record() if config else None)
            (staged / "README.md").write_text(card, encoding="utf-8")
            return push_folder(staged, hub_model_id, private=private, exist_ok=exist_ok)

"""The encoder: tokens in, embeddings out. It may run texts in any order and grouping; nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from angle.config import BillmConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.errors import ConfigError
from angle.modeling import adapters
from angle.modeling.backbone import checkpoint_activations, is_decoder, load_backbone, load_tokenizer, position_limit
from angle.modeling.bidirectional import check_class, decoder_layers, make_bidirectional
from angle.modeling.description import SelfDescription, adapter_base, describe, locate, read_json
from angle.modeling.packing import enable_packing, run_packed, run_padded
from angle.modeling.pooling import Lengths, pool
from angle.modeling.quantization import dequantize
from angle.modeling.tokenizer import TextTokenizer, TokenContract
from angle.structures import Tokens

#: Groups of similar length that a padded batch is cut into. Padding is what costs on a CPU, launches on a GPU.
GROUPS = {"cpu": 4}
#: Where packed rows are faster than padded ones.
PACKED_ON = ("cpu",)


class Encoder(nn.Module):
    """A backbone, its tokenizer and a pooling."""

    def __init__(
        self,
        backbone: Any,
        tokenizer: TextTokenizer,
        pooling: str,
        is_llm: bool,
        bidirectional_from: int | None = None,
        load_kbit: int | None = None,
        packable: bool = False,
    ) -> None:
        """Put the parts together; use `load` to get them from a name or a folder."""
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.is_llm = is_llm
        self.bidirectional_from = bidirectional_from
        self.load_kbit = load_kbit
        self.packable = packable

    @classmethod
    def load(
        cls,
        model: ModelConfig | str,
        pooling: PoolingConfig | None = None,
        lora: LoraConfig | None = None,
        billm: BillmConfig | None = None,
        *,
        merge: bool | None = None,
    ) -> Encoder:
        """Return the encoder that the settings, or a name alone, describe: on the hub, in a model or a run folder.

        Args:
            model: a name, or the settings. An adapter as `name_or_path` is merged into the weights of its base;
                `model.adapter` is put on them, to be trained further.
            pooling: null for what the model says of itself.
            lora: when enabled, a fresh adapter is put on top of those that are there, which stay frozen.
            billm: when enabled, says which layers attend in both directions.
            merge: true to merge any adapter, false to keep any apart.

        Raises:
            ConfigError: whatever keeps the model from being loaded, or its settings from making sense.

        """
        _quiet_transformers()
        if isinstance(model, str):
            model = ModelConfig(model)
        source = _find(model)
        fresh = lora if lora is not None and lora.enabled else None
        merged = source.adapter is not None and fresh is None and (source.is_adapter if merge is None else merge)
        said = source.describe()
        # An adapter belongs to the weights it was trained on: those that their few bits stand for.
        bits = said.load_kbit if source.adapter and (merged or model.load_kbit is None) else model.load_kbit
        backbone = load_backbone(replace(model, revision=source.revision), source.base, bits)
        if merged and source.saved:
            backbone = adapters.merge_adapters(dequantize(backbone) if bits else backbone, source.saved)
        is_llm = is_decoder(backbone)
        strategy = pooling.strategy if pooling else "auto"
        if strategy == "auto":
            if said.problem is not None:
                raise ConfigError(said.problem)
            strategy = said.pooling or ("avg" if is_llm else "cls")
        tokenizer = load_tokenizer(*source.tokenizer(model), said, strategy, position_limit(backbone))
        start = _first_bidirectional_layer(billm, said, backbone, is_llm)
        if start is not None:
            make_bidirectional(backbone, start)
        if is_llm and start != 0 and strategy in ("cls", "0"):
            raise ConfigError(
                f"pooling.strategy={strategy} cannot work with {type(backbone).__name__}: in a decoder "
                f"the first token has seen no other; choose avg or last, or billm=all."
            )
        packable = model.attn_implementation is None and enable_packing(backbone)
        # The head that transformers puts on some encoders is no part of an embedding. It stays, so that a saved
        # folder is complete, but it must not wait for gradients that never come.
        for parameter_name, parameter in backbone.named_parameters():
            if "pooler" in parameter_name:
                parameter.requires_grad_(False)
        if model.gradient_checkpointing:
            checkpoint_activations(backbone)
        if fresh or (source.saved and not merged):
            base = str(Path(source.base).resolve()) if Path(source.base).exists() else source.base
            backbone = adapters.add_adapters(backbone, base, revision=source.revision, saved=source.saved, fresh=fresh)
        return cls(backbone, tokenizer, strategy, is_llm, start, None if merged else bits, packable)

    @property
    def has_adapters(self) -> bool:
        """Whether adapters stand beside the weights."""
        return hasattr(self.backbone, "peft_config")

    @property
    def dimensions(self) -> int:
        """Width D of an embedding."""
        return int(self.backbone.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.backbone.parameters()).device
        return device

    @property
    def contract(self) -> TokenContract:
        """What must hold wherever this model is used."""
        tokenizer = self.tokenizer
        return TokenContract(
            self.pooling,
            tokenizer.max_length,
            tokenizer.prompt,
            tokenizer.tokenizer.padding_side,
            self.is_llm,
            self.bidirectional_from,
            self.load_kbit,
            tokenizer.special_tokens,
        )

    def forward(self, ids: Tensor, lengths: Lengths) -> Tensor:
        """Return the embeddings (N, D), float32, of N texts.

        Args:
            ids: (T,) tokens of all texts, one text after the other.
            lengths: (N,) tokens of each.

        """
        order = np.argsort(-lengths, kind="stable")
        ids = ids[torch.from_numpy(_places(lengths, order)).to(ids.device)]
        pooled = pool(self._states(ids, lengths[order]), lengths[order], self.pooling)
        return pooled[torch.from_numpy(np.argsort(order)).to(pooled.device)]

    def _states(self, ids: Tensor, lengths: Lengths) -> Tensor:
        """Return the states (T, D) of the tokens of texts that are sorted by length, longest first."""
        options = {"use_cache": False} if self.is_llm else {}
        if self.is_packed:
            return run_packed(self.backbone, ids, lengths, **options)
        pad = self.tokenizer.tokenizer.pad_token_id or 0
        groups = self._groups(lengths)
        parts = torch.split(ids, [int(group.sum()) for group in groups])
        return torch.cat(
            [run_padded(self.backbone, part, group, pad, **options) for part, group in zip(parts, groups, strict=True)]
        )

    @property
    def is_packed(self) -> bool:
        """Whether the texts of a batch run as one row without padding."""
        return self.packable and self.device.type in PACKED_ON

    def _groups(self, lengths: Lengths) -> list[Lengths]:
        """Return the lengths of texts that are padded together, of all that are sorted."""
        return np.array_split(lengths, min(GROUPS.get(self.device.type, 1), len(lengths)))

    def padding_share(self, lengths: Lengths) -> float:
        """Return which share of the positions that `forward` runs for texts of these lengths is padding."""
        if self.is_packed:
            return 0.0
        groups = self._groups(np.sort(lengths)[::-1])
        return 1 - int(lengths.sum()) / sum(int(group.max()) * len(group) for group in groups)

    @torch.no_grad()
    def encode_tokens(
        self, tokens: Tokens, batch_size: int = 64, progress: Callable[[int], object] | None = None
    ) -> Tensor:
        """Return the embeddings (N, D), float32 on the CPU, without dropout and gradient; the mode is restored.

        Args:
            tokens: N texts; they run longest first, in groups of `batch_size`.
            batch_size: texts at a time.
            progress: called with the number of texts each time some are done.

        """
        was_training = self.training
        self.eval()
        out = torch.empty(len(tokens), self.dimensions)
        try:
            for texts in tokens.slices(batch_size):
                some = tokens.take(texts)
                ids = torch.from_numpy(some.ids.astype("int64")).to(self.device)
                out[torch.from_numpy(texts)] = self(ids, some.lengths).float().cpu()
                if progress:
                    progress(len(texts))
        finally:
            self.train(was_training)
        return out

    def encode(
        self, texts: Sequence[str], extras: Sequence[Mapping[str, str]] | None = None, batch_size: int = 64
    ) -> Tensor:
        """Return the embeddings (N, D) of texts, the template applied; `extras` as in `TextTokenizer`.

        Raises:
            TypeError: one text instead of a list of them.

        """
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts: encode([text])")
        return self.encode_tokens(self.tokenizer(texts, extras), batch_size)

    def save(self, folder: Path) -> None:
        """Write weights (or adapters alone), tokenizer and contract into a new folder."""
        folder.mkdir(parents=True)
        # The base's embeddings are no part of an adapter; asked whether they are, peft would look for the base.
        further = {"save_embedding_layers": False} if self.has_adapters else {}
        self.backbone.save_pretrained(folder, **further)
        self.tokenizer.save(folder)
        self.contract.save(folder)


@dataclass(frozen=True)
class _Source:
    """Where the parts of a model are."""

    base: str
    revision: str | None
    """Of the base, on the hub."""
    adapter: str | None
    adapter_revision: str | None
    is_adapter: bool
    """Whether the adapter was given as the model, and not beside it."""
    saved: adapters.SavedAdapters | None

    def describe(self) -> SelfDescription:
        """Return what the adapter says of itself, and if it says nothing, the base."""
        said = describe(self.adapter, self.adapter_revision) if self.adapter else SelfDescription()
        return describe(self.base, self.revision) if said == SelfDescription() else said

    def tokenizer(self, model: ModelConfig) -> tuple[ModelConfig, str]:
        """Return settings and place of the tokenizer: with the adapter, if one was saved there."""
        try:
            beside = self.adapter and read_json(self.adapter, "tokenizer_config.json", self.adapter_revision)
        except OSError:
            beside = None
        place, revision = (self.adapter, self.adapter_revision) if beside else (self.base, self.revision)
        return replace(model, revision=revision), place or self.base


def _find(model: ModelConfig) -> _Source:
    """Return where the model's parts are, adapters fetched.

    Raises:
        ConfigError: a place that is none, or an adapter on an adapter.

    """
    name = locate(model.name_or_path)
    base = adapter_base(name, model.revision)
    if base is None and model.adapter is None:
        return _Source(name, model.revision, None, None, False, None)
    if base is None:
        adapter = locate(str(model.adapter), "model.adapter")
        return _Source(name, model.revision, adapter, None, False, adapters.find_adapters(adapter, "model.adapter"))
    if model.adapter is not None:
        raise ConfigError(
            f"model.adapter={model.adapter} cannot work with model.name_or_path={name}, which is an adapter itself: "
            f"give its base, {base[0]}, as model.name_or_path."
        )
    return _Source(
        *base, name, model.revision, True, adapters.find_adapters(name, "model.name_or_path", model.revision)
    )


def _first_bidirectional_layer(
    billm: BillmConfig | None, said: SelfDescription, backbone: Any, is_llm: bool
) -> int | None:
    """Return where both directions begin: where the settings say, else where the model says, else nowhere."""
    if billm is None or not billm.enabled:
        stock = is_llm and getattr(backbone.config, "is_causal", True) is False  # a decoder that was made an encoder
        return 0 if stock else said.bidirectional_from
    if not is_llm:
        raise ConfigError(
            f"billm.enabled=true cannot work with {type(backbone).__name__}: an encoder attends in both directions "
            f"already; type billm=none."
        )
    if billm.model_class is not None:
        check_class(backbone, billm.model_class)
    return billm.first_layer(len(decoder_layers(backbone)))


def _places(lengths: Lengths, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return (T,) where the tokens of the texts are, taken in that order."""
    starts, taken = (lengths.cumsum() - lengths)[order], lengths[order]
    return np.arange(taken.sum()) + np.repeat(starts - (taken.cumsum() - taken), taken)


def _quiet_transformers() -> None:
    """Keep transformers' progress bars and load reports out of the console; what matters is checked and said."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

"""The encoder: tokens in, embeddings out. It may run texts in any order and grouping; nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from angle.config import BillmConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.errors import ConfigError
from angle.modeling import adapters
from angle.modeling.backbone import is_decoder, load_backbone, load_tokenizer, position_limit
from angle.modeling.bidirectional import decoder_layers, make_bidirectional
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
        merge: bool = True,
    ) -> Encoder:
        """Return the encoder that the settings, or a name alone, describe: on the hub, in a model or a run folder.

        Adapters found at the place are merged into the weights, unless `merge` is false or a fresh one is to be trained
        on top of them, as `lora` says. `model.adapter` is trained further, or stays frozen below a fresh one.

        Raises:
            ConfigError: whatever keeps the model from being loaded, or its settings from making sense.

        """
        _quiet_transformers()
        if isinstance(model, str):
            model = ModelConfig(model)
        name, adapter = locate(model.name_or_path), model.adapter and locate(model.adapter)
        base = adapter_base(name, model.revision)
        if base is not None and adapter is not None:
            raise ConfigError(
                f"model.adapter={adapter} cannot work with model.name_or_path={name}, which is an adapter itself: give "
                f"its base, {base}, as model.name_or_path."
            )
        adapter, base = (name, base) if base is not None else (adapter, name)
        fresh = lora if lora is not None and lora.enabled else None
        merged = merge and adapter == name and fresh is None
        said = describe(adapter or name, model.revision)
        # An adapter belongs to the weights it was trained on: those that their few bits stand for.
        bits = said.load_kbit if adapter and (merged or model.load_kbit is None) else model.load_kbit
        backbone = load_backbone(model, base, bits)
        if merged and adapter:
            backbone = adapters.merge_adapters(dequantize(backbone) if bits else backbone, adapter)
        is_llm = is_decoder(backbone)
        strategy = pooling.strategy if pooling else "auto"
        if strategy == "auto":
            if said.problem is not None:
                raise ConfigError(said.problem)
            strategy = said.pooling or ("avg" if is_llm else "cls")
        tokenizer = load_tokenizer(model, _tokenizer_place(adapter, base), said, strategy, position_limit(backbone))
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
            # transformers 5 gave it a new name on the way
            enable = (
                getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
        if fresh or (adapter and not merged):
            base = str(Path(base).resolve()) if Path(base).exists() else base
            backbone = adapters.add_adapters(backbone, base, saved=adapter, fresh=fresh)
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
        if self._is_packed:
            return run_packed(self.backbone, ids, lengths, **options)
        pad = self.tokenizer.tokenizer.pad_token_id or 0
        groups = self._groups(lengths)
        parts = torch.split(ids, [int(group.sum()) for group in groups])
        return torch.cat(
            [run_padded(self.backbone, part, group, pad, **options) for part, group in zip(parts, groups, strict=True)]
        )

    @property
    def _is_packed(self) -> bool:
        return self.packable and self.device.type in PACKED_ON

    def _groups(self, lengths: Lengths) -> list[Lengths]:
        """Return the lengths of texts that are padded together, of all that are sorted."""
        return np.array_split(lengths, min(GROUPS.get(self.device.type, 1), len(lengths)))

    def padding_share(self, lengths: Lengths) -> float:
        """Return which share of the positions that `forward` runs for texts of these lengths is padding."""
        if self._is_packed:
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


def _tokenizer_place(adapter: str | None, base: str) -> str:
    """Return where the tokenizer is: with the adapter, if one was saved there."""
    try:
        return adapter if adapter and read_json(adapter, "tokenizer_config.json") else base
    except OSError:
        return base


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

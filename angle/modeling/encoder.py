"""The encoder: tokens in, embeddings out. It may run texts in any order and grouping; callers cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from angle.config import BillmConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.errors import ConfigError
from angle.kernels.linear import prepacked_weights
from angle.kernels.registry import InstalledKernels, install_kernels
from angle.modeling import adapters
from angle.modeling.backbone import checkpoint_activations, freeze_pooler, load_weights, resolve_direction
from angle.modeling.bidirectional import first_bidirectional_layer, make_bidirectional
from angle.modeling.embedding_config import EmbeddingConfig
from angle.modeling.host_copy import COPY_ELEMENTS, copy_to_host
from angle.modeling.kernel_choice import KernelSelector, kernels_to_skip
from angle.modeling.layers import LayerStateSelector, StateSelector, last_hidden_states, truncate_layers
from angle.modeling.model_sources import resolve_sources
from angle.modeling.packing import (
    Layout,
    padding_fraction,
    run_in_groups,
    run_packed,
    split_into_groups,
    token_positions,
)
from angle.modeling.pooling import check_causal_pooling, pool, resolve_pooling
from angle.modeling.probing import call_options, probe_ids
from angle.modeling.token_types import TokenTypes, find_token_types
from angle.modeling.tokenizer import TextTokenizer
from angle.modeling.tokenizer_loading import load_tokenizer
from angle.modeling.trials import LayoutTrial, observe, packing_is_exact
from angle.quiet import quiet_transformers
from angle.structures import Lengths, Tokens, to_device

#: Number of texts that `encode` tokenises at a time, and all dimensions of an embedding.
ENCODE_CHUNK_SIZE, ALL = 50_000, slice(None)
#: Device types that run packed rows, if a test of the model on the device succeeds.
PACKED_DEVICES = ("cpu", "cuda")


class Encoder(nn.Module):
    """A backbone, its tokenizer and a pooling strategy."""

    def __init__(
        self,
        backbone: Any,
        tokenizer: TextTokenizer,
        pooling: str,
        is_llm: bool,
        bidirectional_from: int | None = None,
        load_kbit: int | None = None,
        kernels: InstalledKernels | None = None,
        unpacked_layout: Layout = Layout.PADDED,
        position_limit: int | None = None,
        token_types: TokenTypes | None = None,
    ) -> None:
        """Put the parts together; use `load` to get them from a name or a folder."""
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.is_llm = is_llm
        self.bidirectional_from = bidirectional_from
        self.load_kbit = load_kbit
        self.kernels = kernels
        #: How texts run where they are not packed, and how many tokens of a text the model has positions for.
        self.unpacked_layout, self.position_limit = unpacked_layout, position_limit
        self.token_types = token_types
        self._call_options: dict[str, Any] = {"token_types": token_types, **call_options(backbone)}
        self.packable = kernels is not None and kernels.reasons["packing"] is None
        self.packing_failed = False
        #: Type of the device on which packed rows were last tested.
        self._packing_tested_device_type = self.device.type
        self.fingerprints: dict[str, str] = {}  # hashes of the weights that were loaded, by part: base, adapters
        self.layers: int | None = None
        self.truncate_dim: int | None = None
        self.normalize = False
        self.loaded_settings = EmbeddingConfig()  # of use here, or only handed on to what is saved

    @classmethod
    @quiet_transformers()
    def load(
        cls,
        model: ModelConfig | str,
        pooling: PoolingConfig | None = None,
        lora: LoraConfig | None = None,
        billm: BillmConfig | None = None,
        *,
        merge: bool | None = None,
        kernel_selector: KernelSelector = kernels_to_skip,
    ) -> Encoder:
        """Return the encoder that the settings, or just a name, describe: on the hub, in a model or a run folder.

        Args:
            model: a name, or the settings. An adapter as `name_or_path` is merged into the weights of its base;
                `model.adapter` is put on top of the weights, to be trained further.
            pooling: None for the pooling saved with the model.
            lora: if enabled, a new adapter is put on top of any existing ones, which stay frozen.
            billm: if enabled, determines which layers attend in both directions.
            merge: True to merge any adapter, False to keep any separate.
            kernel_selector: returns the kernels to skip, given the model and `model.kernels`.

        Raises:
            ConfigError: the model cannot be loaded, or its settings make no sense.

        """
        model = ModelConfig(model) if isinstance(model, str) else model
        sources = resolve_sources(model)
        new_adapter = lora if lora is not None and lora.enabled else None
        merge = sources.name_is_adapter if merge is None else merge
        merged = sources.adapter is not None and new_adapter is None and merge
        embedding_config = sources.read_embedding_config(needs_pooling=pooling is None or pooling.strategy == "auto")
        # An adapter belongs to the weights it was trained on: the values that the quantised weights stand for.
        follows_adapter = sources.adapter is not None and (merged or model.load_kbit is None)
        load_kbit = embedding_config.load_kbit if follows_adapter else model.load_kbit
        backbone = load_weights(model, sources, embedding_config, load_kbit, merged=merged)
        observation = observe(backbone, model.name_or_path)
        is_llm = resolve_direction(model.is_llm, backbone, is_causal=observation.is_causal)
        strategy = resolve_pooling(pooling, embedding_config.pooling, is_llm=is_llm)
        name, revision = sources.find_tokenizer()
        limit = observation.position_limit
        tokenizer = load_tokenizer(replace(model, revision=revision), name, embedding_config, strategy, backbone, limit)
        types = find_token_types(backbone, tokenizer.tokenizer, probe_ids(backbone, 9))
        bidirectional_from = first_bidirectional_layer(
            backbone, billm, embedding_config, is_llm=is_llm, num_layers=model.layers
        )
        if bidirectional_from is not None:
            make_bidirectional(backbone, bidirectional_from)
        if is_llm and bidirectional_from != 0:
            check_causal_pooling(strategy, type(backbone).__name__)
        freeze_pooler(backbone)
        if model.gradient_checkpointing:
            checkpoint_activations(backbone)
        if new_adapter or (sources.saved_adapters and not merged):
            base, revision, saved = sources.absolute_base(), sources.base_revision, sources.saved_adapters
            backbone = adapters.add_adapters(
                backbone, base, revision, saved_adapters=saved, new_config=new_adapter, max_length=tokenizer.max_length
            )
        if model.layers is not None:  # what is tried is the model that will run
            truncate_layers(backbone, model.layers)
        trial = LayoutTrial(backbone, model.name_or_path, tokenizer.max_length, tokenizer.pad_id, types)
        skipped = kernel_selector(backbone, model.kernels)
        kernels = install_kernels(backbone, skipped, lambda _: trial.install_packing(model.attn_implementation))
        layout = trial.choose_layout(packed=kernels.reasons["packing"] is None)
        bits = None if merged else load_kbit
        encoder = cls(backbone, tokenizer, strategy, is_llm, bidirectional_from, bits, kernels, layout, limit, types)
        encoder.fingerprints, dimensions = sources.fingerprints, embedding_config.dimensions
        encoder.truncate(embedding_config.layers, dimensions and min(dimensions, encoder.dimensions))
        encoder.truncate(model.layers, model.dimensions)
        encoder.normalize, encoder.loaded_settings = bool(embedding_config.normalize), embedding_config
        return encoder

    @property
    def has_adapters(self) -> bool:
        """Whether there are adapters beside the weights."""
        return hasattr(self.backbone, "peft_config")

    @property
    def dimensions(self) -> int:
        """Dimension D of an embedding."""
        return self.truncate_dim or int(self.backbone.config.hidden_size)

    @cached_property
    def layer_selector(self) -> LayerStateSelector:
        """Selects the states at several depths.

        Raises:
            ConfigError: the model's intermediate layers give no embeddings.

        """
        return LayerStateSelector(self.backbone)

    def truncate(self, layers: int | None = None, dimensions: int | None = None) -> None:
        """Keep only the model's first layers, and its embeddings' first dimensions; None for all.

        Raises:
            ConfigError: there are not that many.

        """
        if layers is not None:
            truncate_layers(self.backbone, layers)
            self.__dict__.pop("layer_selector", None)
            self.layers = layers
            if self.bidirectional_from is not None and self.bidirectional_from >= layers:
                self.bidirectional_from = None
        if dimensions is not None:
            if dimensions > self.dimensions:
                raise ConfigError(
                    f"model.dimensions={dimensions} cannot work: the model's embeddings have {self.dimensions}; choose "
                    f"a number up to that."
                )
            self.truncate_dim = dimensions

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.backbone.parameters()).device
        return device

    @property
    def embedding_config(self) -> EmbeddingConfig:
        """The settings to save with the model, which determine its embeddings."""
        return replace(
            self.loaded_settings,
            pooling=self.pooling,
            max_length=self.tokenizer.max_length,
            prompt=self.tokenizer.prompt,
            prompts=self.tokenizer.prompts or None,
            padding_side=self.tokenizer.tokenizer.padding_side,
            is_llm=self.is_llm,
            bidirectional_from=self.bidirectional_from,
            load_kbit=self.load_kbit,
            special_tokens=self.tokenizer.special_tokens,
            layers=self.layers,
            dimensions=self.truncate_dim,
            lower_case=self.tokenizer.lower_case,
            base_fingerprint=self.fingerprints.get("base") if self.has_adapters else None,
            normalize=self.normalize or None,
        )

    def forward(self, ids: Tensor, lengths: Lengths, depths: Sequence[int] | None = None) -> Tensor:
        """Return the embeddings (N, D), float32 and of their own length, of N texts; (N, K, D) for K depths.

        Args:
            ids: (T,) tokens of all texts, one text after the other.
            lengths: (N,) tokens of each text.
            depths: the number of layers at each depth; None for just the whole model.

        """
        states, order = self._sorted_states(ids, lengths, depths)
        return self._pool(states, lengths, order, depths)

    def with_token_states(
        self, ids: Tensor, lengths: Lengths, depths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the tokens' own states (T, D) at the last depth that is asked for."""
        states, order = self._sorted_states(ids, lengths, depths)
        unsorted = to_device(np.argsort(token_positions(lengths, order)), ids.device)
        return self._pool(states, lengths, order, depths), states[-1][unsorted]

    def _pool(
        self, states: list[Tensor], lengths: Lengths, order: npt.NDArray[np.int64], depths: Sequence[int] | None
    ) -> Tensor:
        unsorted = to_device(np.argsort(order), states[0].device)
        pooled = [pool(each, lengths[order], self.pooling)[..., : self.truncate_dim][unsorted] for each in states]
        return pooled[0] if depths is None else torch.stack(pooled, dim=1)

    def _sorted_states(
        self, ids: Tensor, lengths: Lengths, depths: Sequence[int] | None
    ) -> tuple[list[Tensor], npt.NDArray[np.int64]]:
        """Return the states (T, D) of all tokens by depth, longest text first, and that order of texts."""
        order = np.argsort(-lengths, kind="stable")
        ids = ids[to_device(token_positions(lengths, order), ids.device)]
        return self._states(ids, lengths[order], depths), order

    def _states(self, ids: Tensor, lengths: Lengths, depths: Sequence[int] | None) -> list[Tensor]:
        """Return the states (T, D), by depth, of the tokens of texts sorted longest first."""
        options = dict(self._call_options)
        select: StateSelector = last_hidden_states
        if depths is not None:
            select = self.layer_selector.at_depths(depths)
            options["output_hidden_states"] = True
        if self.device.type != self._packing_tested_device_type:
            self.verify_packing()
        if self.layout is Layout.PACKED:
            return run_packed(self.backbone, ids, lengths, select, **options)
        groups = split_into_groups(lengths, self.layout, self.device.type)
        return run_in_groups(self.backbone, ids, groups, self.tokenizer.pad_id, select, **options)

    def verify_packing(self, *, training: bool = False) -> None:
        """Test packed rows on the current device, under the active autocast, and do without if they fail.

        `load` did so on the device that it loaded the weights on. On another one, the first call of `forward` does.

        Args:
            training: whether packed rows must have gradients too.

        """
        device_type = self._packing_tested_device_type = self.device.type
        if self.packable and device_type != "cpu" and device_type in PACKED_DEVICES:
            self.packable = packing_is_exact(self.backbone, training=training)
            self.packing_failed = not self.packable

    def kernel_status(self) -> dict[str, str]:
        """Return for each kernel by name "installed", or why it is not used on the current device."""
        status = {} if self.kernels is None else self.kernels.status(self.device.type)
        if self.packing_failed:
            status["packing"] = "failed the comparison on this device"
        return status

    @property
    def is_packed(self) -> bool:
        """Whether the texts of a batch are run as one row without padding."""
        return self.packable and self.device.type in PACKED_DEVICES

    @property
    def layout(self) -> Layout:
        """How the texts of a batch are run."""
        return Layout.PACKED if self.is_packed else self.unpacked_layout

    def padding_fraction(self, lengths: Lengths) -> float:
        """Return the fraction of padding in the positions that `forward` runs, not counting `round_up_rows`."""
        return padding_fraction(lengths, self.layout, self.device.type)

    @torch.no_grad()
    def encode_tokens(
        self,
        tokens: Tokens,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
        depths: Sequence[int] | None = None,
        *,
        as_trained: bool = False,
    ) -> Tensor:
        """Return the embeddings (N, D) or (N, K, D), float32 on the CPU, without dropout or gradient; the mode is kept.

        Args:
            tokens: N texts; they are run longest first, in batches of `batch_size`.
            batch_size: texts at a time.
            progress: called with the number of texts each time some are done.
            depths: as in `forward`.
            as_trained: leave them their own length, as in `forward`, also if the model normalises.

        """
        was_training = self.training
        self.eval()
        embeddings = torch.empty(len(tokens), *(() if depths is None else (len(depths),)), self.dimensions)
        try:
            with prepacked_weights(self.backbone, len(tokens.ids)):
                batches = (
                    (indices, self(*tokens.take(indices).model_inputs(self.device), depths))
                    for indices in tokens.length_sorted_batches(batch_size)
                )
                if self.normalize and not as_trained:
                    batches = ((indices, F.normalize(rows, dim=-1)) for indices, rows in batches)
                copy_to_host(batches, embeddings, progress, 1 if self.device.type == "cpu" else COPY_ELEMENTS)
        finally:
            self.train(was_training)
        return embeddings

    def encode(
        self,
        texts: Sequence[str | Mapping[str, str]],
        extras: Sequence[Mapping[str, str]] | None = None,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
        depth: int | None = None,
        dimensions: slice = ALL,
        tokenizer: TextTokenizer | None = None,
    ) -> Tensor:
        """Return the embeddings (N, D), float32, of texts, with the template applied.

        Apart from the embeddings themselves, memory does not grow with the number of texts.

        Args:
            texts: the texts, or mappings of `text` and the template's further columns.
            extras: those columns, passed separately.
            batch_size: texts at a time; many texts are run longest first.
            progress: called with the number of texts each time some are done.
            depth: after how many layers to take the embeddings; None for after all of them.
            dimensions: which dimensions to return.
            tokenizer: a tokenizer to use instead of the model's own.

        Raises:
            TypeError: `texts` is one text instead of a list of texts.

        """
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts: encode([text])")
        tokenizer, depths = tokenizer or self.tokenizer, None if depth is None else [depth]
        embeddings = torch.empty(len(texts), len(range(*dimensions.indices(self.dimensions))))
        for first in range(0, len(texts), ENCODE_CHUNK_SIZE):
            chunk = slice(first, first + ENCODE_CHUNK_SIZE)
            tokens = tokenizer.tokens_of_rows(texts[chunk], extras[chunk] if extras else None)
            embeddings[chunk] = self.encode_tokens(tokens, batch_size, progress, depths).flatten(1)[:, dimensions]
        if self.normalize and embeddings.shape[1] < self.dimensions:
            F.normalize(embeddings, dim=-1, out=embeddings)
        return embeddings

    @quiet_transformers()
    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the weights (the given ones, or only the adapters), tokenizer and settings into a new folder."""
        folder.mkdir(parents=True)
        if self.has_adapters:
            adapters.save_adapters(self.backbone, folder, weights, is_llm=self.is_llm)
        else:
            self.backbone.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save(folder)
        self.embedding_config.save(folder)

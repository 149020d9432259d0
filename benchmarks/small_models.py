"""Small random models of every text architecture of transformers, as its configuration class makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from angle.modeling.tiny import tiny_tokenizer

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
        (4, "mamba_n_heads mamba_num_heads linear_num_key_heads linear_num_value_heads linear_num_heads"),
        (2, "num_key_value_heads num_kv_heads n_kv_heads num_global_key_value_heads"),
        (
            8,
            "head_dim attention_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim dim_head global_head_dim d_kv "
            "kv_channels swa_head_dim swa_v_head_dim mamba_d_head mamba_head_dim linear_key_head_dim "
            "linear_value_head_dim linear_head_dim hidden_size_per_layer_input",
        ),
        (
            16,
            "qk_head_dim q_lora_rank kv_lora_rank swa_q_lora_rank swa_kv_lora_rank mamba_d_state state_size "
            "ssm_state_size lru_width",
        ),
        (
            160,
            "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length seq_length max_seq_length "
            "original_max_position_embeddings",
        ),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts num_local_expert"),
        (2, "num_experts_per_tok moe_topk moe_k num_experts_per_token moe_top_k experts_per_token"),
        (1, "n_group topk_group n_groups num_expert_groups num_expert_group first_k_dense_replace"),
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
    # Its layers have no normalisation that scales: with weights of 0.2, states grow to 1e9 and gradients overflow.
    "mobilebert": {"initializer_range": 0.05},
    "funnel": {"block_sizes": [2, 2], "architectures": ["FunnelModel"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16], "attention_head_size": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "convbert": {"head_ratio": 2},
    "longformer": {"attention_window": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "bamba": {"mamba_n_heads": 8},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_ssm": 64},
    "granitemoehybrid": {"mamba_n_heads": 8},
    "mamba2": {"num_heads": 8},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": [48] * 4},
    "luke": {"entity_vocab_size": 10},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "neomme": {"head_dim": 16},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "hybrid"] * 3},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 300,
        "split_ngram_parts": 1,
    },
    "nemotron": {"num_key_value_heads": 2},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
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
    tokenizer.save_pretrained(folder)
    config = small_config(CONFIG_MAPPING[name], len(tokenizer), **SETTINGS.get(name, {}))
    config.save_pretrained(folder)
    if any(getattr(config, f"{modality}_config", None) is not None for modality in ("vision", "audio")):
        return  # refused by its configuration; its other parts would not be small
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
    if size > 50_000_000:
        raise ValueError(f"{size:,} weights")
    model = AutoModel.from_config(config)
    _fill_zeros(model)
    model.save_pretrained(folder)


def _fill_zeros(model: torch.nn.Module) -> None:
    """Give weights that begin at zero small random values: where they are zero, the parts behind them do nothing.

    NeoMME begins without attention: whatever is wrong with its masks or positions, its texts would agree. Tokens that
    pad begin with embeddings of zeros, which hide that MobileBERT shows them to the tokens before them.
    """
    padding = [
        module.weight[module.padding_idx]
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None
    ]
    with torch.no_grad():
        for weight in (*model.parameters(), *padding):
            if weight.is_floating_point() and not weight.any():
                weight.normal_(std=SIZES["initializer_range"])

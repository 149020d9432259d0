"""What both generations of sentence-transformers read: version 6 on transformers 5, and version 5 on transformers 4.

transformers 5 writes some settings where transformers 4 does not look for them, and 4 then takes defaults without a
word. A folder gets them in both places if that is enough for the same embeddings. If not, it is written so that only
version 6 loads it. `python -m benchmarks.generations` compares the two.
"""

from __future__ import annotations

from typing import Any

#: Architectures that transformers 4.57 computes as transformers 5 does, given both of their settings.
SHARED_ARCHITECTURES = frozenset(
    (
        "albert", "bert", "big_bird", "biogpt", "bloom", "camembert", "codegen", "cohere", "ctrl", "data2vec-text",
        "deberta", "deberta-v2", "distilbert", "electra", "ernie", "falcon", "gemma", "gemma2", "gemma3_text", "glm",
        "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite", "helium", "ibert", "llama", "longformer", "megatron-bert",
        "mistral", "mixtral", "modernbert", "mpnet", "olmo", "olmo2", "openai-gpt", "opt", "phi", "phi3",
        "qwen2", "qwen3", "rembert", "roberta", "roberta-prelayernorm", "roformer", "smollm3", "squeezebert",
        "stablelm", "starcoder2", "xglm", "xlm-roberta", "xlm-roberta-xl",
    )
)  # fmt: skip
#: Where transformers 4 reads the bases of rotary positions that differ by type of layer, by architecture.
ROPE_BASES_BY_LAYER = {
    "gemma3_text": {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"},
    "modernbert": {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"},
}
#: Where it reads a part of the parameters of rotary positions under a name of its own, by architecture.
ROPE_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


def shared_tokenizer_config(content: dict[str, Any], *, uses_token_types: bool) -> dict[str, Any]:
    """Return a tokenizer_config.json with which both generations write texts as the encoder's tokenizer does.

    Both have the class that takes tokenizer.json as it is. Others are missing in one of them, or build the tokenizer
    anew from its vocabulary, without an end token that was added, say.
    """
    shared = content | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Padding never changes our embeddings. In sentence-transformers, left padding changes those of a model with a
        # table of positions; right padding is harmless for any model.
        "padding_side": "right",
        # Decoders such as GPT-2 would add the embedding of token 0 for type 0.
        "model_input_names": ["input_ids", *(["token_type_ids"] if uses_token_types else []), "attention_mask"],
    }
    if isinstance(shared.get("extra_special_tokens"), list):  # transformers 4 knows the list by another name
        shared["additional_special_tokens"] = shared.pop("extra_special_tokens")
    return shared


def shared_model_config(content: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with settings where each generation reads them."""
    shared = content | _rope_settings(content)
    layer_types = content.get("layer_types")
    if content.get("model_type") == "modernbert" and layer_types:
        # The full-attention layers are listed one by one in transformers 5, and each n-th layer is one in 4.
        full = [index for index, layer_type in enumerate(layer_types) if layer_type == "full_attention"]
        count = len(layer_types)
        period = next((n for n in range(1, count + 1) if full == list(range(0, count, n))), None)
        shared |= {} if period is None else {"global_attn_every_n_layers": period}
    return shared


def _rope_settings(content: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of rotary positions in a config.json of transformers 5, by the names they have in 4."""
    parameters, architecture = content.get("rope_parameters"), content.get("model_type")
    if not isinstance(parameters, dict):
        return {}
    bases = ROPE_BASES_BY_LAYER.get(str(architecture))
    if bases is not None:
        copies = {name: (parameters.get(layer_type) or {}).get("rope_theta") for layer_type, name in bases.items()}
        scaling = dict(parameters.get("full_attention") or {})
    else:
        names = ROPE_NAMES.get(str(architecture), {})
        copies = {names.get(key, key): parameters.get(key) for key in ("rope_theta", "partial_rotary_factor")}
        scaling = dict(parameters)
    for key in ("rope_theta", "partial_rotary_factor"):
        scaling.pop(key, None)
    if scaling.get("rope_type", "default") != "default":
        copies["rope_scaling"] = scaling
    return {name: value for name, value in copies.items() if value is not None}


def needs_version_6(model_config: dict[str, Any]) -> bool:
    """Return whether transformers 4 would compute other embeddings from a config.json for both generations."""
    architecture = model_config.get("model_type")
    # The switches that make a decoder bidirectional are new in transformers 5, except Gemma 3's: 4 ignores them.
    is_bidirectional = model_config.get("is_causal") is False or (
        model_config.get("use_bidirectional_attention") is True and architecture != "gemma3_text"
    )
    # It knows no other pattern of ModernBERT's layers.
    has_own_pattern = architecture == "modernbert" and "global_attn_every_n_layers" not in model_config
    return architecture not in SHARED_ARCHITECTURES or is_bidirectional or has_own_pattern

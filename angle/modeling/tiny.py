"""The built-in model: a small BERT for the vocabulary of the sample data, so that everything runs without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from angle.data.sample import vocabulary

if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedModel


def tiny_tokenizer() -> BertTokenizer:
    """Return the built-in tokenizer: whole words of the sample data, and subword pieces for others."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={piece: number for number, piece in enumerate(vocabulary())}, do_lower_case=True)


def tiny_model() -> PreTrainedModel:
    """Return the built-in model. Its random initialisation is always the same, like a checkpoint's weights."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(config).eval()

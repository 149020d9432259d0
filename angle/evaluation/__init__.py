"""How well embeddings agree with people's judgements."""

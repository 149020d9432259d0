"""Measure how well embeddings agree with human judgements."""

"""Embeddings + structure + labels -> named loss terms. Nothing here knows about tokens or models."""

"""Embeddings + structure + labels -> named loss terms. Nothing here knows tokens or models."""

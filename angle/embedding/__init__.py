"""Embeddings of the texts in files, however many."""

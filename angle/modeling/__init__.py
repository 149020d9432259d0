"""Texts -> tokens -> embeddings. Nothing here knows pairs, labels or losses."""

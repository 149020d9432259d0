"""The quality benchmark: models that this project, angle_emb and sentence-transformers train on the same rows."""

"""The throughput benchmark: this project, angle_emb and sentence-transformers do the same work in one run."""

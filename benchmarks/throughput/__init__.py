"""The throughput benchmark: this project, angle_emb and sentence-transformers on the same work, in one run."""

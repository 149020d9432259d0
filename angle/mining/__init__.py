"""Hard negatives: for each query, passages near it that do not answer it."""

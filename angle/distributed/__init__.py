"""Several processes: what the launcher says of them, and how they communicate."""

"""Several processes: the environment that their launcher sets, and the process group in which they communicate."""

"""The loop, and what keeps a run safe: its folder, its checkpoints, its records."""

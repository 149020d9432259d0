"""The commands, options and arguments of the reference, angle_emb."""

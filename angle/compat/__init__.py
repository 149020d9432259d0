"""The commands, options and arguments of angle_emb."""

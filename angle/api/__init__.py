"""The Python API: AnglE, and what its users know from angle_emb."""

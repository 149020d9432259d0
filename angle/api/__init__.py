"""The Python API: AnglE, and what its users know from the reference, angle_emb."""

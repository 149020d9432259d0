"""The Python face: AnglE, and what its users know from the reference."""

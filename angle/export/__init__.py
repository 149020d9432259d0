"""Trained encoders in the shape that other software loads."""

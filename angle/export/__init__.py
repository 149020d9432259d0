"""Trained encoders in formats that other software loads."""

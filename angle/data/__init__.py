"""Rows -> texts + structure -> batches."""

"""Replacements of operations of torch, each by itself: nothing here knows the project beyond its data structures."""

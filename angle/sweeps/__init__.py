"""What a sweep has found: its record, its settings over their seeds, its table, its verdict."""

"""Where metrics and messages of a run go."""

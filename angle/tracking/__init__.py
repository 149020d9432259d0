"""Where the messages and metrics of a run go: a container of sinks, and one module for each sink."""

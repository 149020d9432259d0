"""Command line -> validated configuration, with errors as sentences."""

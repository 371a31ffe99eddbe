"""Schema and loader of the run configuration; imports no torch."""

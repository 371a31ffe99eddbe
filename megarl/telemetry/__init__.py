"""Mergeable metrics, spans, logs and sinks."""

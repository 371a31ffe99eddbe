"""vLLM engines: sampling and weight adoption."""

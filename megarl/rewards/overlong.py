"""DAPO's soft penalty on long responses (arXiv 2503.14476, eq. 13). Pure."""


def compute_overlong_penalty(response_tokens: int, *, max_tokens: int, cache_tokens: int, factor: float = 1.0) -> float:
    """0 up to max_tokens - cache_tokens, then linear to -factor at max_tokens and beyond. Lengths in tokens."""
    over = response_tokens - (max_tokens - cache_tokens)
    if over <= 0:
        return 0.0
    return -factor * min(over / cache_tokens, 1.0)

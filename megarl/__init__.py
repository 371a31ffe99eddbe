"""RLVR at Megatron scale, and the instrument for studying clipping and entropy there."""

__version__ = "0.1.0"

"""HF checkpoints on disk, read and written."""

"""Weights from Megatron shards to rollout engines."""

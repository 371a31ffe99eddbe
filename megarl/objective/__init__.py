"""Advantages, clip bounds, losses and aggregation: pure tensor functions."""

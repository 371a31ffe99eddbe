"""Rank grid, device, packing, vocab-parallel log-prob and entropy."""

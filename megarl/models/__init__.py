"""Model families: HF config to model shape, and the one table of how HF tensors map to Megatron shards."""

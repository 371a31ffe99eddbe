"""The Megatron-core policy: model, forward and backward, optimizer."""

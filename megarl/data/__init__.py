"""Prompt sets, chat templates and the resumable sampler."""

"""Verifiers and random-reward controls."""

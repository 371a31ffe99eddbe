"""The megarl command."""

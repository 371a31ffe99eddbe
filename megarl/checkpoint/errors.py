"""The one error of checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the text names the file and says what to do."""

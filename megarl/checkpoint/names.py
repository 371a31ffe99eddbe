"""Names of files as a checkpoint's own tables have them, which a stranger may have written."""


def is_plain_name(name: object) -> bool:
    """Whether it is the name of a file in a directory, and leads nowhere else."""
    return isinstance(name, str) and name not in {"", ".", ".."} and not {"/", "\0"} & set(name)

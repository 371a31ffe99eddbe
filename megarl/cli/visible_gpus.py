"""The GPUs that CUDA_VISIBLE_DEVICES lets a process see."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


def named_gpus(visible: str) -> list[str]:
    """The GPUs that this value of it names; at "-1" the list ends, as for CUDA."""
    names = [name.strip() for name in visible.split(",")]
    return [name for name in (names[: names.index("-1")] if "-1" in names else names) if name]

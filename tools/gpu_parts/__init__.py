"""The parts of tools/gpu_check.py: what each measures. A part is a module with `run(check)`."""

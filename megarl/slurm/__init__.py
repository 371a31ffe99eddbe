"""Slurm, and nothing but Slurm: a job as data, its script, and how its attempts follow each other."""

"""Pictures and pages of runs, made from the files of a run directory alone."""

"""What arXiv 2509.26114 proves about clipping and entropy, as float64 functions that can be checked to rounding.

`tabular`, `theorems` and `tree` are exact; `monte_carlo` samples groups at single states, `multi_step` trains a small
softmax. `studies` and `identities` are what `megarl theory` runs.
"""

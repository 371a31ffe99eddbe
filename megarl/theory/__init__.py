"""What arXiv 2509.26114 proves about clipping and entropy, as float64 functions that can be checked to rounding.

`tabular`, `theorems` and `tree` are exact; `monte_carlo` samples groups at single states, `multi_step` trains a small
softmax. `megarl theory` runs all `studies` and `identities` (`results`) and shows them (`tables`, `charts`, `files`).
"""

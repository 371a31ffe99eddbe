"""What runs did, against the theorems: the sign of clipping's term, the first-order prediction, equal entropy.

Everything is read from the files of runs: updates.jsonl, metrics.jsonl and rollouts/. `reading` makes of each run a few
hundred numbers, `numbers` keeps them, `tables` and `figures` compare them over runs.
"""

"""The documents of docs/results: what is stored of an ablation, and what each document computes of it."""

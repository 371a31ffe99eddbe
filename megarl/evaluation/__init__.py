"""What a model's answers to benchmarks say: estimators, intervals, comparisons of two models, and the answers' file."""

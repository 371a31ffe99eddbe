"""What `train` alone checks, beside what all verbs do: of files, listings and small ones only; and the environment."""

import os
from collections.abc import Iterator

from megarl.cli.start_weights import find_start_problems
from megarl.config.base import ConfigError
from megarl.config.cluster import find_allocator_problem
from megarl.config.data_files import find_data_files
from megarl.config.evaluation import BenchmarkFile, name_benchmark
from megarl.config.run import RunConfig


def find_train_problems(config: RunConfig, *, begins: bool = True) -> Iterator[str]:
    """Of the weights that it begins with, where it `begins`, and of the benchmarks that it is evaluated on."""
    if begins:
        yield from find_start_problems(config)
    if config.eval.every_steps:
        yield from find_benchmark_problems(config)


def find_environment_problems(config: RunConfig) -> Iterator[str]:
    """Of this process's environment, which its workers get too."""
    if config.cluster.colocate and (problem := find_allocator_problem(os.environ)):
        yield problem


def find_benchmark_problems(config: RunConfig) -> Iterator[str]:
    """What of the benchmarks' files is missing or not clear."""
    for name, benchmark in config.eval.benchmarks.items():
        if isinstance(benchmark.data, BenchmarkFile):
            try:
                find_data_files(benchmark.data)
            except ConfigError as error:
                yield from (name_benchmark(text, name) for text in error.problems)

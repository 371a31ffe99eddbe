"""What `train` alone checks of a run's files, beside what all verbs do; listings and small files only."""

from collections.abc import Iterator

from megarl.cli.start_weights import find_start_problems
from megarl.config.base import ConfigError
from megarl.config.data_files import find_data_files
from megarl.config.evaluation import BenchmarkFile, name_benchmark
from megarl.config.run import RunConfig


def find_train_problems(config: RunConfig, *, begins: bool = True) -> Iterator[str]:
    """Of the weights that it begins with, where it `begins`, and of the benchmarks that it is evaluated on."""
    if begins:
        yield from find_start_problems(config)
    if config.eval.every_steps:
        yield from find_benchmark_problems(config)


def find_benchmark_problems(config: RunConfig) -> Iterator[str]:
    """What of the benchmarks' files is missing or not clear."""
    for name, benchmark in config.eval.benchmarks.items():
        if isinstance(benchmark.data, BenchmarkFile):
            try:
                find_data_files(benchmark.data)
            except ConfigError as error:
                yield from (name_benchmark(text, name) for text in error.problems)

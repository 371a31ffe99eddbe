"""A Parquet file of the shape of DAPO-Math-17k on the hub: each problem about a hundred times."""

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"content": pa.string(), "role": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"ground_truth": pa.string(), "style": pa.string()}),
        "extra_info": pa.struct({"index": pa.string()}),
    }
)
_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'
_WORDS = ("let", "the positive integers", "triangle $ABC$", "$x^2+y^2$", "such that", "for every prime", "the sum of")
_GROUP_ROWS = 100_000


def write_dapo_math(file: Path, *, problems: int, copies: int, seed: int = 0) -> Path:
    """`copies` shuffled rounds through the problems, one row group after the other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = _draw_problems(problems, random.Random(seed))
    with pyarrow.parquet.ParquetWriter(file, SCHEMA) as writer:
        for indexes in _row_groups(problems, copies, random.Random(seed)):
            taken = pa.array(indexes, pa.int64())
            writer.write_batch(rows.take(taken))
    return file


def _row_groups(problems: int, copies: int, generator: random.Random) -> Iterator[list[int]]:
    waiting: list[int] = []
    for _ in range(copies):
        order = list(range(problems))
        generator.shuffle(order)
        waiting += order
        while len(waiting) >= _GROUP_ROWS:
            yield waiting[:_GROUP_ROWS]
            waiting = waiting[_GROUP_ROWS:]
    if waiting:
        yield waiting


def _draw_problems(count: int, generator: random.Random) -> pa.RecordBatch:
    texts = [" ".join(generator.choices(_WORDS, k=generator.randint(8, 30))) for _ in range(count)]
    return pa.RecordBatch.from_pylist(
        [
            {
                "data_source": "math_dapo",
                "prompt": [{"content": f"{_BEFORE}{number}: {text}{_AFTER}", "role": "user"}],
                "ability": "MATH",
                "reward_model": {"ground_truth": str(number % 1000), "style": "rule-lighteval/MATH_v2"},
                "extra_info": {"index": f"{generator.getrandbits(128):032x}"},
            }
            for number, text in enumerate(texts)
        ],
        schema=SCHEMA,
    )

"""What a step costs the driver: seconds and memory of everything that is neither generation nor model.

The real loop (`controller.loop.train`), reporter, reward pool and tokenizer run two steps with fake workers: engines
that answer with random tokens and policy ranks that answer with random log-probs. What would cross a process border is
pickled with its arrays out of band and read back, as Ray does. Counted are decoding, scoring, packing, the driver's
side of moving, metrics and parquet; not counted is what the fakes do in the workers' place, their side of moving
included. Every size runs in a process of its own.

seconds: wall time of a step, the mean of both, the last file's writing included. longest_stall_s: the longest time for
which the event loop could do nothing else. Targets, on two cores: at most 0.3 s per million tokens, at most 1 GiB + 100
bytes per token, no stall above 0.2 s.
"""

import argparse
import asyncio
import io
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console as RichConsole
from rich.table import Table

from megarl.config.run import RunConfig
from megarl.controller.checkpoints import Checkpoints
from megarl.controller.loop import train
from megarl.controller.parts import Parts
from megarl.controller.protocols import Arrived
from megarl.controller.reporting import StepReporter
from megarl.controller.stopping import StopRequest
from megarl.data.decoding import build_decode, build_token_text
from megarl.data.sampler import PromptSampler
from megarl.objective.controllers import ControllerState
from megarl.objective.tokens import Controls
from megarl.objective.update_result import UpdateResult
from megarl.parallel.batches import BatchShard
from megarl.policy.reports import ScoredMicroBatch, scores_by_sample
from megarl.records import Floats, PackedRollouts, Prompt, Rollout, SampleRequest, TokenScores, TokenTrace, as_tokens
from megarl.rewards.pool import RewardPool
from megarl.rules import Rule
from megarl.telemetry.console import Console
from megarl.telemetry.garbage import ManualCollection
from megarl.telemetry.metrics import Mean, Metrics, Sum
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import build_sinks, build_update_sinks
from megarl.telemetry.spans import Spans
from megarl.telemetry.stalls import StallWatch

SIZES = (1_000, 10_000, 40_000)
RESPONSE_TOKENS = 1_000
PROMPT_TOKENS = 64
GROUP = 8
STEPS = 2
VOCABULARY = 4096
EXAMPLES = """examples:
  python tools/bench_driver.py                   # a table; about two minutes on 2 cores
  python tools/bench_driver.py --json            # the same as JSON
  python tools/bench_driver.py --mini-batch 0    # one mini-batch for the whole step
"""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure, mini_batch=options.mini_batch or options.measure)))
        return 0
    rows = [measure_apart(responses, mini_batch=options.mini_batch) for responses in options.sizes]
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        print_table(rows)
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--mini-batch", type=int, default=1_000, help="responses of an update (default 1000); 0: all")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="responses of a step (default: %(default)s)"
    )
    parser.add_argument("--measure", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for size in (*options.sizes, options.measure):
        if size % GROUP or size < 0 or (options.mini_batch and size % options.mini_batch):
            parser.error(
                f"{size} responses are not a multiple of the group {GROUP} and of --mini-batch {options.mini_batch}"
            )
    return options


def measure_apart(responses: int, *, mini_batch: int) -> dict[str, Any]:
    """The row of one size, from a process of its own: the peak of its memory is that of the size alone."""
    command = [sys.executable, __file__, "--measure", str(responses), "--mini-batch", str(mini_batch)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    return row


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="the driver's part of a step")
    for header in ("responses", "tokens", "s", "s per M tokens", "peak MiB", "bytes per token over 1 GiB", "stall s"):
        table.add_column(header, justify="right")
    for row in rows:
        tokens, peak = row["tokens"], row["peak_rss_bytes"]
        over = max(0, peak - 2**30) / tokens
        cells = (f"{row['seconds']:.2f}", f"{row['seconds'] / tokens * 1e6:.3f}", f"{peak / 2**20:,.0f}", f"{over:.0f}")
        table.add_row(f"{row['responses']:,}", f"{tokens:,}", *cells, f"{row['longest_stall_s']:.3f}")
    RichConsole().print(table)


def measure(responses: int, *, mini_batch: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        config = make_config(responses, mini_batch=mini_batch, directory=scratch)
        tokenizer = make_tokenizer()
        workers = FakeWorkers(config)
        with (
            RewardPool(
                config.reward, config.data, max_response_tokens=RESPONSE_TOKENS, seed=config.train.seed
            ) as scorer,
            open_reporter(config) as reporter,
        ):
            parts = Parts(
                policy=workers,
                pool=workers,
                scorer=scorer,
                prompts=workers.prompts,
                sampler=PromptSampler(len(workers.prompts), config.train.prompts_per_step, seed=0, shuffle=False),
                decode=build_decode(tokenizer),
                token_text=build_token_text(tokenizer),
                reporter=reporter,
                controllers=ControllerState(config.objective, total_steps=STEPS, seed=0),
                checkpoints=Checkpoints(config, Path(scratch), stop=StopRequest()),
                connect=workers.connect,
            )
            seconds, stall_s = asyncio.run(drive(config, parts, workers))
    return {
        "responses": responses,
        "tokens": responses * RESPONSE_TOKENS,
        "seconds": seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "longest_stall_s": stall_s,
    }


async def drive(config: RunConfig, parts: Parts, workers: "FakeWorkers") -> tuple[float, float]:
    """Seconds of a step, and of the longest stall."""
    with ManualCollection():  # what was imported is looked at here, once a run, and not in the seconds of a step
        async with StallWatch() as stalls:
            started_s = time.perf_counter()
            await train(config, parts)
            seconds = time.perf_counter() - started_s - workers.own_s
            return seconds / config.train.steps, stalls.collect()["perf/loop_stall_max"].value


def make_config(responses: int, *, mini_batch: int, directory: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "driver",
            "model": {"path": "unused"},
            "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
            "reward": {"verifier": {"kind": "random"}},
            "rollout": {
                "max_prompt_tokens": PROMPT_TOKENS,
                "max_response_tokens": RESPONSE_TOKENS,
                "max_logp_diff": 9.0,
            },
            "train": {
                "steps": STEPS,
                "prompts_per_step": responses // GROUP,
                "samples_per_prompt": GROUP,
                "mini_batch_responses": mini_batch,
            },
            "logging": {"directory": directory, "rollouts_every": 1},
        }
    )


@contextmanager
def open_reporter(config: RunConfig) -> Iterator[StepReporter]:
    directory = RunDirectory.create(config, source=None, verb="train")
    sinks, update_sinks = build_sinks(config, run=directory), build_update_sinks(run=directory)
    with Console(steps=STEPS, file=io.StringIO()) as console, Spans(directory.timeline_path) as spans:
        yield StepReporter(
            config=config, directory=directory, console=console, sinks=sinks, update_sinks=update_sinks, spans=spans
        )
    sinks.close()
    update_sinks.close()


def make_tokenizer() -> Any:
    """A byte-level BPE of made-up words, of about four characters a token as real ones have."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(draw.choice(letters, size=draw.integers(2, 10))) for _ in range(6000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken("<|endoftext|>", special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(draw.choice(words, size=50)) for _ in range(500)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


Parcel = tuple[bytes, list[bytearray]]


def send(value: Any) -> Parcel:
    """What crosses a process border: arrays out of band, everything else pickled."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickled, [bytearray(buffer.raw()) for buffer in buffers]


def receive(parcel: Parcel) -> Any:
    """As the other side has it."""
    pickled, buffers = parcel
    return pickle.loads(pickled, buffers=buffers)


class FakeWorkers:
    """Engines and policy ranks of one process; `own_s` is what they took to do the workers' work."""

    def __init__(self, config: RunConfig) -> None:
        self.own_s = 0.0
        draw = np.random.default_rng(0)
        count = STEPS * config.train.prompts_per_step
        self.prompts = [
            Prompt(index=index, text=f"prompt {index}", token_ids=tuple(tokens), answer="1")
            for index, tokens in enumerate(draw.integers(1, VOCABULARY, size=(count, PROMPT_TOKENS)).tolist())
        ]
        self._draw = draw
        self._batch: Sequence[BatchShard] = ()

    @contextmanager
    def _own_work(self) -> Iterator[None]:
        before_s = time.perf_counter()
        try:
            yield
        finally:
            self.own_s += time.perf_counter() - before_s

    async def generate(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        rollouts: list[Rollout] = []
        for start in range(0, len(requests), GROUP):
            with self._own_work():
                sent = send(PackedRollouts.of([self._answer(one) for one in requests[start : start + GROUP]]))
            come: list[Rollout] = receive(sent).unpack()
            arrived(range(start, start + GROUP), come)
            rollouts += come
            await asyncio.sleep(0)
        return rollouts

    def _answer(self, request: SampleRequest) -> Rollout:
        tokens = self._draw.integers(1, VOCABULARY, size=RESPONSE_TOKENS, dtype=np.int32)
        logps = -self._draw.random(RESPONSE_TOKENS, dtype=np.float32)
        return Rollout(
            prompt=as_tokens(request.prompt),
            response=tokens,
            behavior_logp=logps,
            stop_reason="stop",
            policy_version=0,
        )

    async def score(self, shards: Sequence[BatchShard], *, hold: bool = True) -> list[TokenScores]:
        return await asyncio.to_thread(self._score_all, shards)

    def _score_all(self, shards: Sequence[BatchShard]) -> list[TokenScores]:
        scores: list[TokenScores] = []
        for shard in shards:
            # One mini-batch after the other: what the ranks hold is not the driver's memory.
            for mini in shard:
                parcel = send(mini)
                with self._own_work():
                    reported = send([[self._score(batch).report() for batch in receive(parcel)]])
                scores += scores_by_sample((mini,), receive(reported))
        return scores

    def _score(self, batch: Any) -> ScoredMicroBatch:
        count = batch.response_offsets[-1]
        return ScoredMicroBatch(
            old_logp_R=-torch.rand(count), old_entropy_R=torch.rand(count), ref_logp_R=None, expected_q_R=None
        )

    async def train_mini_batch(
        self, index: int, controls: Controls, *, traced: range
    ) -> tuple[UpdateResult, list[TokenTrace]]:
        return await self.apply_update(traced=traced)

    async def score_and_differentiate(self, shards: Sequence[BatchShard], controls: Controls) -> list[TokenScores]:
        return await self.score(shards)

    async def apply_update(self, *, traced: range) -> tuple[UpdateResult, list[TokenTrace]]:
        traces = await asyncio.to_thread(self._send_traces, traced)
        metrics: Metrics = {"actor/entropy": Mean(1.0, 1.0), "actor/grad_norm": Mean(1.0, 1.0)}
        return UpdateResult(logp=Mean(-1.0, 1.0), kl=Mean(), metrics=metrics), receive(traces)

    def _send_traces(self, traced: range) -> Parcel:
        with self._own_work():
            return send([self._trace(sample_id) for sample_id in traced])

    def _trace(self, sample_id: int) -> TokenTrace:
        def numbers() -> Floats:
            return self._draw.random(RESPONSE_TOKENS, dtype=np.float32)

        rule = np.array((0, 0, 0, int(Rule.CLIP_HIGH)) * (RESPONSE_TOKENS // 4), dtype=np.int32)
        names = ("logp", "entropy", "expected_q", "ratio", "low", "high", "gate", "weight", "coefficient", "advantage")
        return TokenTrace(sample_id=sample_id, rule=rule, **{name: numbers() for name in names})

    async def reset_reference(self) -> None: ...

    async def sft_update(self, shards: Any) -> UpdateResult:
        raise NotImplementedError("a step of RL makes none")

    async def connect(self) -> None: ...

    async def receive_weights(self, version: int) -> None: ...

    async def publish_weights(self, version: int) -> Metrics:
        return {"publish/bytes": Sum(1.0)}

    async def adopt_weights(self, version: int) -> Metrics:
        return {}

    async def export_hf(self, path: str) -> None: ...


if __name__ == "__main__":
    sys.exit(main())

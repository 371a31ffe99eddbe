"""Steps of TRL's GRPOTrainer on a CPU, timed; tools/bench_step.py runs it where `trl` is installed.

The last line of the output is JSON: for each step its `seconds`, those of `generate` (rewards within), of `update` (all
else), and `response_tokens` on average.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

MICRO_BATCH = 16
"""Responses of a forward pass; the update accumulates."""


def main() -> int:
    options = parse_arguments()
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = json.loads(options.prompts.read_text(encoding="utf-8"))
    config = GRPOConfig(
        output_dir=str(options.prompts.parent / "trl"),
        use_cpu=True,
        bf16=options.dtype == "bfloat16",
        model_init_kwargs={"dtype": options.dtype},
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=options.responses // MICRO_BATCH,
        gradient_checkpointing=False,
        num_generations=options.samples,
        max_completion_length=options.response_tokens,
        temperature=0.8,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        scale_rewards="none",
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        max_steps=options.steps,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    trainer = timed_trainer(GRPOTrainer)(
        model=str(options.model), reward_funcs=last_number, args=config, train_dataset=Dataset.from_list(rows)
    )
    trainer.train()
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "step_time" in entry]
    steps = [
        {"seconds": whole, "generate": generate, "update": whole - generate, "response_tokens": length}
        for whole, generate, length in zip(trainer.step_s, trainer.generate_s, lengths, strict=True)
    ]
    print(json.dumps(steps))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face checkpoint")
    parser.add_argument("prompts", type=Path, help='JSON: [{"prompt": text, "answer": text}, ...]')
    parser.add_argument("--steps", type=int, default=4, help="default 4")
    parser.add_argument(
        "--responses", type=int, default=64, help=f"of a step, a multiple of {MICRO_BATCH} (default 64)"
    )
    parser.add_argument("--samples", type=int, default=8, help="responses to a prompt (default 8)")
    parser.add_argument("--response-tokens", type=int, default=48, help="at most (default 48)")
    parser.add_argument("--lr", type=float, default=1e-6, help="default 1e-6")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default bfloat16")
    options = parser.parse_args()
    if options.responses % MICRO_BATCH:
        parser.error(f"--responses {options.responses} is not a multiple of {MICRO_BATCH}")
    return options


def timed_trainer(base: type) -> type:
    """GRPOTrainer that notes the seconds of each step, and of the sampling and scoring within."""

    class TimedTrainer(base):  # type: ignore[misc]
        def __init__(self, **kwargs: Any) -> None:
            self.step_s: list[float] = []
            self.generate_s: list[float] = []
            super().__init__(**kwargs)
            self.add_callback(make_step_timer(self.step_s))

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            started_s = time.perf_counter()
            generated = super()._generate_and_score_completions(inputs)
            self.generate_s.append(time.perf_counter() - started_s)
            return generated

    return TimedTrainer


def make_step_timer(seconds: list[float]) -> Any:
    """A callback that notes the time from a step's begin, before it samples, to the end of its update."""
    from transformers import TrainerCallback

    class StepTimer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started_s = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.started_s)

    return StepTimer()


def last_number(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 where the last number of the response is the answer."""
    found = [re.findall(r"-?\d+", completion) for completion in completions]
    return [float(bool(numbers) and numbers[-1] == want) for numbers, want in zip(found, answer, strict=True)]


if __name__ == "__main__":
    sys.exit(main())

"""`megarl show` and the command itself: TOML that loads back, exit codes, and a start without torch."""

import datetime
import importlib.metadata
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from megarl.cli.show import derived_comments, print_config, print_fields
from megarl.config.fields import iter_fields
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from tests.config.text import SMALL, write_config
from tests.data.templates import LLAMA32, make_tokenizer

PAPER = Path(__file__).parents[2] / "configs" / "papers" / "clip-dapo-math-qwen2.5-7b-4nodes.toml"
OVERRIDES = ["objective.clip.high=inf", "reward.overlong.cache_tokens=8", "policy.optimizer.lr=3e-7"]


def run_megarl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megarl.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def shown(path: Path, overrides: list[str], *, terminal: bool = False) -> str:
    file = StringIO()
    print_config(Console(file=file, force_terminal=terminal, width=120, color_system="standard"), path, overrides)
    return file.getvalue()


@pytest.mark.parametrize("overrides", [[], OVERRIDES])
@pytest.mark.parametrize("source", ["small", "paper"])
def test_output_loads_back(tmp_path: Path, source: str, overrides: list[str]) -> None:
    path = PAPER if source == "paper" else write_config(tmp_path)
    again = tmp_path / "again.toml"
    again.write_text(shown(path, overrides), encoding="utf-8")
    assert load_config(again) == load_config(path, overrides)


def test_colours_only_on_a_terminal(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert "\x1b[" not in shown(path, [])
    assert "\x1b[" in shown(path, [], terminal=True)


def test_derived_numbers() -> None:
    comments = derived_comments(load_config(PAPER))
    assert comments["parallel"] == ("data-parallel ranks: 8 = world_size 16 / (tensor 2 x pipeline 1)",)
    assert comments["train"] == (
        "responses per step: 4096 = 512 prompts x 8 samples",
        "updates per step: 16 = 4096 responses / 256; 3200 in 200 steps",
        "old log-probs: a forward pass of their own before the first of several updates",
        "responses per data-parallel rank and update: 32",
    )
    assert comments["rollout"][0] == "longest sequence: 6144 tokens"
    assert comments["cluster"] == ("with CUDA: 32 of 32 GPUs used: policy 16, engines 16 x 1",)


def test_what_will_stop_a_response_is_said_without_the_model(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert derived_comments(load_config(path))["rollout"][1:] == (
        "a response ends at: the chat template's end of turn, eos_token_id of generation_config.json (else "
        "config.json), the tokenizer's eos_token",
        "  read off models/tiny, which is not there yet",
    )
    bare = ["data.chat_template=false", "rollout.stop_token_ids=[5]", 'rollout.stop_strings=["#"]']
    comments = derived_comments(load_config(path, bare))
    assert comments["rollout"][1] == (
        "a response ends at: eos_token_id of generation_config.json (else config.json), the tokenizer's eos_token, "
        "rollout.stop_token_ids, rollout.stop_strings (their tokens are kept and in the loss)"
    )
    assert comments["data"] == (
        "bare text begins with the tokenizer's own beginning-of-sequence token, where it has one",
    )


def test_what_stops_a_response_is_read_off_the_model(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write_config(tmp_path)
    overrides = [f"model.path={tiny_model_dir}", r'rollout.stop_strings=["\n\n"]']
    text = shown(path, overrides)
    assert "# a response ends at (and with, in the loss too)\n#   <|im_end|> (id 2): the chat template's end of" in text
    assert r"#   the text '\n\n': rollout.stop_strings; its tokens are kept, are in the loss" in text
    again = tmp_path / "again.toml"
    again.write_text(text, encoding="utf-8")
    assert load_config(again) == load_config(path, overrides)
    comments = derived_comments(load_config(path, [*overrides, "rollout.stop_token_ids=[9999]"]))
    assert comments["rollout"][1] == "what stops a response cannot be told:"
    assert "stop token 9999 (rollout.stop_token_ids) is none of" in comments["rollout"][2]


def test_the_clock_and_the_beginning_of_bare_text_are_shown(tmp_path: Path) -> None:
    model = tmp_path / "model"
    make_tokenizer(LLAMA32).save_pretrained(model)
    path = write_config(tmp_path)
    overrides = [f"model.path={model}"]
    assert derived_comments(load_config(path, [*overrides, "data.date=2024-02-29"]))["data"] == (
        "the chat template reads the clock; a run pins it to data.date: 2024-02-29",
    )
    today = datetime.date.today().isoformat()
    assert derived_comments(load_config(path, overrides))["data"][0].endswith(f"pins it to today: {today}")
    bare = derived_comments(load_config(path, [*overrides, "data.chat_template=false"]))
    assert bare["data"] == ("bare text begins with <|begin_of_text|>",)


def test_fields_lists_every_field_with_default_and_meaning() -> None:
    file = StringIO()
    print_fields(Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    for entry in iter_fields(RunConfig):
        start = f"[{entry.path}]" if entry.is_section else f"{entry.path} = "
        at = next(index for index, line in enumerate(lines) if line.startswith(start))
        about = lines[at].removeprefix(start) if entry.is_section else " ".join(lines[at + 1 : at + 3])
        assert about.strip(), entry.path
    assert "objective.gate.dual = inf  (a number > 1)" in lines
    tis = next(line for line in lines if line.startswith("[objective.weights.tis]"))
    assert "min(rho, cap)" in tis
    assert tis.endswith("(absent: off)")
    assert not next(line for line in lines if line.startswith("[objective.weights]")).endswith("off)")
    assert "sft.optimizer.lr = 1e-05  (a number > 0)" in lines
    changing = "(may change when the run goes on)"
    assert f"train.steps = 100  (an integer >= 1)  {changing}" in lines
    assert next(line for line in lines if line.startswith("[logging]")).endswith(changing)
    assert "train.seed = 0  (an integer >= 0)" in lines


def test_config_error_is_plain_and_exits_2(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    done = run_megarl("show", str(path), "train.stepz=1", "tensor=2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{path}: 2 problems",
        "  train.stepz: unknown key; did you mean train.steps? [override 'train.stepz=1']",
        "  tensor: unknown key; did you mean parallel.tensor or rollout.tensor? [override 'tensor=2']",
    ]


def test_fragments_and_overrides(tmp_path: Path) -> None:
    methods = PAPER.parents[1] / "methods"
    path = str(write_config(tmp_path))
    done = run_megarl(
        "show", path, str(methods / "sapo.toml"), str(methods / "kl-cov.toml"), "objective.weights.tis={}"
    )
    assert done.returncode == 0, done.stderr
    again = tmp_path / "again.toml"
    again.write_text(done.stdout, encoding="utf-8")
    objective = load_config(again).objective
    assert (objective.gate.kind, objective.clip.kind) == ("ppo", "none")
    assert objective.weights.tis is not None
    assert "# survey: one more forward pass before every update but a step's first, 1 a step\n" in done.stdout
    refused = run_megarl("show", path, str(methods / "flexec-id.toml"), str(methods / "sapo.toml"), "train.seed=-1")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        f"{path} + {methods / 'flexec-id.toml'} + {methods / 'sapo.toml'}: 1 problem",
        "  train.seed: expected an integer >= 0, found -1 (integer) [override 'train.seed=-1']",
    ]


def test_choices_that_files_take_from_one_another_are_marked(tmp_path: Path) -> None:
    methods = PAPER.parents[1] / "methods"
    sapo, bonus, skywork = (str(methods / f"{name}.toml") for name in ("sapo", "entropy-bonus", "entropy-skywork"))
    path = write_config(tmp_path, SMALL + "[objective]\ngate = { dual = 3.0 }\nclip = { low = 0.1, high = inf }\n")
    assert "replaced" not in shown(path, ["objective.clip.low=0.3"])
    text = shown(path, [sapo, bonus, skywork])
    assert text.startswith(
        f'# replaced: objective.clip.low 0.1, objective.clip.high inf ({path}) by objective.clip.kind "none" ({sapo})\n'
        f'# replaced: objective.gate.dual 3.0 ({path}) by objective.gate.kind "sapo" ({sapo})\n'
        f"# replaced: objective.auxiliary.entropy.coefficient 0.001 ({bonus}) by 0.0 ({skywork})\n"
        'name = "small"\n'
    )


def test_version() -> None:
    done = run_megarl("--version")
    assert (done.returncode, done.stdout) == (0, f"megarl {importlib.metadata.version('megarl')}\n")


def test_a_survey_is_counted_only_where_there_is_one(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert "objective" not in derived_comments(load_config(path))
    assert "objective" in derived_comments(load_config(path, ["objective.weights.steer={}"]))


def test_a_scaled_learning_rate_is_shown(tmp_path: Path) -> None:
    overrides = ["policy.optimizer.lr=1e-6", "policy.optimizer.lr_for_responses=4", "train.mini_batch_responses=16"]
    (line,) = derived_comments(load_config(write_config(tmp_path), overrides))["policy.optimizer"]
    assert line == "peak learning rate: 2e-06 = lr x sqrt(16 responses / 4)"


def test_show_without_a_file_says_what_is_missing() -> None:
    done = run_megarl("show")
    assert done.returncode == 2
    assert "expected a CONFIG file or --fields" in done.stderr


def test_train_checks_the_model_before_anything_heavy(tmp_path: Path) -> None:
    done = run_megarl("train", str(write_config(tmp_path)), "model.path=Qwen/Qwen2.5-3B-Instruct")
    assert done.returncode == 2
    assert "hf download Qwen/Qwen2.5-3B-Instruct" in done.stderr
    assert "Traceback" not in done.stderr


def test_sft_needs_its_section(tmp_path: Path) -> None:
    done = run_megarl("sft", str(write_config(tmp_path)))
    assert done.returncode == 2
    assert "sft: missing" in done.stderr


@pytest.mark.parametrize("verb", ["train", "sft", "show", "doctor", "report", "top"])
def test_help_has_examples(verb: str) -> None:
    done = run_megarl(verb, "--help")
    assert done.returncode == 0
    assert f"megarl {verb} " in done.stdout.partition("Examples")[2]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["show", "CONFIG"], ["show", "--fields"], ["doctor", "--help"]]
)
def test_starts_without_heavy_packages(tmp_path: Path, arguments: list[str]) -> None:
    path = str(write_config(tmp_path))
    arguments = [path if argument == "CONFIG" else argument for argument in arguments]
    code = (
        "import sys, megarl.cli.main as m\n"
        f"sys.argv = ['megarl', *{arguments!r}]\n"
        "try:\n    m.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'vllm', 'megatron', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

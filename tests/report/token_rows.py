"""Rows of rollouts for tests of the reader, and the reader's payload read back."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from megarl.records import TokenTrace
from megarl.rules import rule_flags
from megarl.telemetry.rollouts import RolloutRow
from tests.telemetry.rollout_files import write_rows

TEXTS = ("<b>", "\n", "", " so")


def make_row(
    sample_id: int,
    rules: tuple[str, ...],
    *,
    step: int = 7,
    prompt: str = "<script>?",
    texts: tuple[str, ...] | None = TEXTS,
    advantage: float = 0.5,
    traced: bool = True,
    **others: Any,
) -> RolloutRow:
    """A response of a token per entry of `rules`, whose texts go round `texts`; no two of its numbers are equal."""
    num = len(rules)
    token_text = None if texts is None else tuple(texts[position % len(texts)] for position in range(num))
    numbers = np.random.default_rng((step, sample_id)).uniform(0.1, 2.0, (12, num)).astype(np.float32)
    trace = TokenTrace(
        sample_id=sample_id,
        logp=-numbers[0],
        entropy=numbers[1],
        expected_q=numbers[2],
        ratio=numbers[3],
        low=np.full(num, 0.8),
        high=np.full(num, np.inf if advantage < 0 else 1.28),
        gate=numbers[4],
        weight=numbers[5],
        coefficient=numbers[6],
        advantage=numbers[7] * np.sign(advantage),
        rule=[rule_flags(names) for names in rules],
    )
    fields: dict[str, Any] = {
        "step": step,
        "prompt_index": 0,
        "sample_index": sample_id,
        "sample_id": sample_id,
        "policy_version": step - 1,
        "prompt_text": prompt,
        "response_text": "".join(token_text or ()),
        "prompt_tokens": (1,),
        "response_tokens": tuple(range(num)),
        "token_text": token_text,
        "behavior_logp": -numbers[8],
        "old_logp": -numbers[9],
        "old_entropy": numbers[10],
        "ref_logp": None,
        "trace": trace if traced else None,
        "reward": 1.0,
        "verifier_reward": 1.0,
        "overlong": 0.0,
        "bonus": 0.0,
        "failure": None,
        "advantage": advantage,
        "stop_reason": "stop",
    }
    return RolloutRow(**fields | others)


def write_steps(folder: Path, rows: list[RolloutRow]) -> Path:
    """Write the rows into the files of their steps; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for step in {row.step for row in rows}:
        write_rows(folder / f"step-{step:06d}.parquet", [row for row in rows if row.step == step])
    return folder


def payload_of(page: str) -> dict[str, Any]:
    """The payload that a page's text holds."""
    found = re.findall(r"<script type='application/json' id='reader-data'>(.*?)</script>", page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def tokens_of(payload: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """A response's tokens, rules and columns, out of its compressed form."""
    data = zlib.decompress(base64.b64decode(response["data"]))
    count = response["shown"]

    def take(kind: str) -> np.ndarray:
        nonlocal data
        width = np.dtype(kind).itemsize
        part, data = data[: count * width], data[count * width :]
        return np.frombuffer(np.frombuffer(part, "u1").reshape(width, count).T.tobytes(), kind)

    found: dict[str, Any] = {"tokens": [tuple(payload["tokens"][number]) for number in take("<u4")]}
    found["rules"] = [payload["rules"][number] for number in take("<u2")]
    found["columns"] = {name: take("<f4") for name in payload["layouts"][response["layout"]]}
    assert data == b""
    return found

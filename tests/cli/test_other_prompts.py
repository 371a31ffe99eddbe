"""Other data, allowed: taken where a file was moved, and said where it holds something else."""

from megarl.cli.train import _with_other_prompts
from megarl.controller.progress import RunProgress
from megarl.data.sampler import PromptSampler
from tests.controller.fakes import Recorder, make_config, make_parts


def test_data_that_was_allowed_to_change_and_has_is_told() -> None:
    config = make_config(steps=2)
    for digest, told in (("0a", 0), ("0b", 1)):
        recorder = Recorder()
        before, now = (PromptSampler(6, 2, seed=0, digest=text) for text in ("0a", digest))
        before.draw(5)
        parts = make_parts(config, recorder, sampler=now)
        owners = RunProgress.collect(parts.owners, step=1, policy_version=1).owners | {"sampler": before.state_dict()}
        progress = _with_other_prompts(RunProgress(step=1, policy_version=1, owners=owners), parts)
        progress.restore(parts.owners, steps=2)
        assert now.state_dict() == {**before.state_dict(), "digest": digest}
        assert len(recorder.warnings) == told
        assert all("are others than those of the steps before" in warning for warning in recorder.warnings)

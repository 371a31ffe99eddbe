"""Ray as megarl starts it asks for a token; of a cluster that asks for none megarl says so."""

import json
import os
import subprocess
import sys

JOIN = """
import json, logging, ray
from megarl.runtime.ray_token import answers_without_token, check_token, guard_local_ray
logging.basicConfig(level=logging.WARNING)
{before}
ray.init(address="local", logging_level=logging.ERROR, log_to_driver=False, num_cpus=1, include_dashboard=False)
address = ray.get_runtime_context().gcs_address
print(json.dumps([address, answers_without_token(address)]))
check_token(joined={joined})
ray.shutdown()
"""


def run(*, before: str, joined: bool, mode: str | None) -> tuple[str, bool, str]:
    """(address of the cluster, whether it answers without a token, what was logged); Ray in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0"} | ({"RAY_AUTH_MODE": mode} if mode else {})
    program = JOIN.format(before=before, joined=joined)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    address, answers = json.loads(done.stdout.splitlines()[-1])
    return address, answers, done.stderr


def test_ray_started_here_asks_for_a_token() -> None:
    address, answers, logged = run(before="guard_local_ray()", joined=False, mode=None)
    assert address.startswith("127.0.0.1:")
    assert not answers
    assert "token" not in logged


def test_a_cluster_that_asks_for_none_is_told() -> None:
    address, answers, logged = run(before="", joined=True, mode="disabled")
    assert answers
    (line,) = [line for line in logged.splitlines() if "megarl" in line]
    assert f"the Ray cluster at {address} asks for no token" in line
    assert "RAY_AUTH_MODE=token" in line

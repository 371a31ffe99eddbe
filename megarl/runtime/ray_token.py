"""Who may use Ray: with a token of the run where it is started here, and a word where a joined cluster asks for none.

Ray runs what it is sent, so whoever may use it may do everything. The token is generated for each run and goes to
Ray's processes in their environment: no command line, file or log has it. (Left to itself Ray 2.60 asks for one too,
and keeps it in the home directory for all runs.)
"""

import logging
import os
import secrets

import grpc
import ray
from ray._private import ray_constants

from megarl.config.base import ConfigError

_log = logging.getLogger(__name__)
_PROBE_TIMEOUT_S = 5.0


def guard_local_ray() -> None:
    """Before Ray is started in this process: it will ask for a token, and be reached from this machine only."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray._raylet.Config.initialize("")  # Ray read the mode when it was imported
    stay_on_this_machine()


def stay_on_this_machine() -> None:
    """Before Ray is started or joined: this node's address is the loopback's."""
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray's name for that


def check_token(*, joined: bool) -> None:
    """Warn of a cluster that anyone may use; ConfigError when it is the one that was started here."""
    address = ray.get_runtime_context().gcs_address
    if not answers_without_token(address):
        return
    if not joined:
        ray.shutdown()
        raise ConfigError(f"Ray {ray.__version__} was started here and answers without its token; install ray>=2.52")
    _log.warning(
        "the Ray cluster at %s asks for no token: whoever reaches its ports can run code in this run and read its "
        "secrets; start it with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN on all nodes and here",
        address,
    )


def answers_without_token(gcs_address: str) -> bool:
    """Does Ray's control service answer a call that carries no token? No, too, where it asks for TLS."""
    with grpc.insecure_channel(gcs_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check_alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            check_alive(b"", timeout=_PROBE_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return True

"""The port of the policy's rendezvous is held from the moment it is chosen until the ranks meet on it."""

import socket
from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.runtime import policy_actors
from megarl.runtime.policy_actors import PolicyActor
from tests.telemetry.runs import make_config


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PolicyActor:
    monkeypatch.setattr(policy_actors, "redirect_output", lambda _: None)
    monkeypatch.setattr(policy_actors, "setup_logging", lambda *_: None)
    monkeypatch.setattr(policy_actors.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    return PolicyActor(make_config(tmp_path), 0, tmp_path)


def test_nobody_takes_the_port_that_was_told(actor: PolicyActor) -> None:
    host, port = actor.rendezvous(0)
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind((host, port))


def test_a_port_in_use_is_named_with_its_field(actor: PolicyActor) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"policy.master_port {port} on 127.0.0.1 is in use .*set another, or 0"):
            actor.rendezvous(port)

"""New weights from the policy to the engines.

Invariant: an engine has the old weights until it has all of the new ones; a publication that fails changes none.
"""

import logging

from megarl.controller.parts import Parts
from megarl.reshard.signals import TransportError
from megarl.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


async def publish_weights(version: int, parts: Parts) -> Metrics:
    """Publish and install `version`; a publication that fails is tried once more over new connections.

    Raises:
        TransportError: the second attempt failed too, or the peers could not be connected again. Begins with that
            cause, which is a dead worker where there is one, and names the first too.
    """
    try:
        return await _publish(version, parts)
    except TransportError as first:
        _log.warning("%s. Connecting anew to try once more", first)
        try:
            await parts.connect()
            return await _publish(version, parts)
        except Exception as second:
            raise TransportError(f"{second}\nThat ended a second attempt; the first ended because {first}") from second


async def _publish(version: int, parts: Parts) -> Metrics:
    await parts.pool.receive_weights(version)
    sent = await parts.policy.publish_weights(version)
    return sent | await parts.pool.adopt_weights(version)
